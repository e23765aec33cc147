"""/predict of task heads: the rows of waiting requests are answered together, in few compiled shapes."""

import asyncio
import collections
import concurrent.futures
import dataclasses
import json
import threading

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from configs.errors import UserError
from data.columns import Row
from train.console import warn
from train.prediction import TaskModel
from train.serving import fields
from train.serving.connection import body_of, while_connected
from train.serving.errors import RequestError, overloaded, stopping, timed_out
from train.serving.limits import Limits
from train.tasks.classification import Classification
from train.tasks.task import Answer

_FIELDS = ("inputs", "model")
_Waiting = tuple[list[Row], "concurrent.futures.Future[list[Answer]]"]


class Batcher:
    """A thread that answers the rows of all waiting requests together."""

    def __init__(self, model: TaskModel, max_waiting: int) -> None:
        self._model, self._max_waiting = model, max_waiting
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._closed, self._running = False, 0
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, rows: list[Row]) -> "concurrent.futures.Future[list[Answer]]":
        """Returns the future answers of rows; a canceled future frees its place.

        Raises:
            RequestError: too many others wait, or the server is stopping.
        """
        future: concurrent.futures.Future[list[Answer]] = concurrent.futures.Future()
        with self._changed:
            if self._closed:
                raise stopping()
            self._waiting = collections.deque(each for each in self._waiting if not each[1].cancelled())
            if len(self._waiting) >= self._max_waiting:
                raise overloaded(self._max_waiting)
            self._waiting.append((rows, future))
            self._changed.notify()
        return future

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def counts(self) -> tuple[int, int]:
        """Returns the numbers of requests that are being answered and that wait."""
        return self._running, len(self._waiting)

    def close(self) -> None:
        """Ends the thread after the rows that it is answering."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            self._running = len(taken)
            try:
                self._answer(taken)
            except Exception:
                # One of the requests is the reason, and the others have nothing to do with it.
                for each in taken:
                    self._answer_or_fail(each)
            self._running = 0

    def _answer(self, taken: list[_Waiting]) -> None:
        answers = iter(self._model.answer_rows([row for rows, _ in taken for row in rows]))
        for rows, future in taken:
            future.set_result([next(answers) for _ in rows])

    def _answer_or_fail(self, waiting: _Waiting) -> None:
        try:
            self._answer([waiting])
        except Exception as error:
            warn(f"serve: {type(error).__name__}: {error}; a request ends with an error")
            if not waiting[1].done():
                waiting[1].set_exception(RequestError("the prediction failed; see the server's log", 500))

    def _take(self) -> list[_Waiting] | None:
        """Waits for requests and returns as many as are answered together; None when the batcher is closed."""
        with self._changed:
            while not (self._waiting or self._closed):
                self._changed.wait()
            if self._closed:
                for _, future in self._waiting:
                    if future.set_running_or_notify_cancel():
                        future.set_exception(stopping())
                return None
            taken: list[_Waiting] = []
            count = 0
            while self._waiting and (not taken or count + len(self._waiting[0][0]) <= self._model.backend.rows_at_once):
                rows, future = self._waiting.popleft()
                # False: its client has gone.
                if future.set_running_or_notify_cancel():
                    taken.append((rows, future))
                    count += len(rows)
            return taken


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The endpoint of a task head.

    Attributes:
        name: the model's, in `/v1/models`.
        model: the task's.
        batcher: answers.
        limits: of the server.
        calibration: whether the probabilities are calibrated, in a sentence; "": there are none.
    """

    name: str
    model: TaskModel
    batcher: Batcher
    limits: Limits
    calibration: str

    async def predict(self, request: Request) -> Response:
        """Answers a POST to /predict."""
        body = fields.read_body(await body_of(request, self.limits))
        fields.check_fields(body, _FIELDS)
        fields.check_model(body, self.name)
        rows = self._rows(body.get("inputs"))
        future = self.batcher.submit(rows)
        try:
            async with asyncio.timeout(self.limits.timeout):
                answers = await while_connected(request, asyncio.wrap_future(future))
        except TimeoutError:
            raise timed_out(self.limits.timeout) from None
        finally:
            future.cancel()
        if isinstance(self.model.task, Classification):
            answers = [_with_classes(answer) for answer in answers]
        return JSONResponse({"model": self.name, "predictions": answers, "calibration": self.calibration})

    def _rows(self, inputs: object) -> list[Row]:
        if not isinstance(inputs, list) or not inputs:
            raise RequestError(
                "inputs is not a list of texts or rows; expected at least one", param="inputs", code="invalid_value"
            )
        if len(inputs) > self.limits.max_rows:
            message = f"inputs has {len(inputs):,} rows; expected at most {self.limits.max_rows:,} (--max_rows)"
            raise RequestError(message, 413, "inputs", "too_many_rows")
        return [self._row(item, f"inputs[{place}]") for place, item in enumerate(inputs)]

    def _row(self, item: object, place: str) -> Row:
        if isinstance(item, dict):
            fields.text(json.dumps(item, ensure_ascii=False), place)
            return dict(item)
        if not isinstance(item, str):
            raise RequestError(
                f"{place} is neither a text nor an object with the columns of a row", param=place, code="invalid_value"
            )
        try:
            return self.model.row_of(fields.text(item, place))
        except UserError as error:
            raise RequestError(f"{place}: {error}", param=place, code="invalid_value") from None


def _with_classes(answer: Answer) -> Answer:
    """Returns an answer with its classes, most likely first, as a list beside the columns of `rootstock predict`."""
    if "probabilities" in answer:
        # Several labels per row: the most likely classes, also those that are not predicted.
        names = answer.get("top", answer["prediction"]) or []
        pairs = list(zip(names, answer.get("top_probabilities", answer["probabilities"]) or [], strict=True))
    else:
        ranks = [name.removeprefix("probability") for name in answer if name.startswith("probability")]
        pairs = [(answer[f"prediction{rank}"], answer[f"probability{rank}"]) for rank in ranks]
    classes = [{"label": name, "probability": probability} for name, probability in pairs if name is not None]
    return {**answer, "classes": classes}
