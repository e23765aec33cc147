"""Errors of requests, in the format of OpenAI's API."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

# Seconds after which a refused client may try again.
RETRY_AFTER = 2
_LONGEST = 500  # characters of a message or a name
_TYPES = {401: "authentication_error", 503: "overloaded_error", 504: "timeout_error", 500: "server_error"}


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        message: one line for the person who sent it.
        status: HTTP status.
        param: the field of the body that is wrong, or None.
        code: a word for programs, such as "unsupported_parameter", or None.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = _shown(" ".join(message.split())), status, param, code
        if param is not None:
            self.param = _shown(param)

    def body(self) -> dict[str, dict[str, str | None]]:
        """Returns the body of the answer, which is also an event of a stream."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Returns the answer."""
        headers: Mapping[str, str] = {}
        if self.status == 503:
            headers = {"Retry-After": str(RETRY_AFTER)}
        elif self.status == 401:
            headers = {"WWW-Authenticate": "Bearer"}
        elif self.status in (408, 413):
            # What is left of the body is not read.
            headers = {"Connection": "close"}
        return JSONResponse(self.body(), self.status, headers)


def _shown(text: str) -> str:
    """Returns a text that can be sent: names of fields may be long, or have halves of characters, as JSON can."""
    return text[:_LONGEST].encode("utf-8", "backslashreplace").decode()


def overloaded(waiting: int) -> RequestError:
    """Returns the error of a request for which there is no place."""
    message = f"{waiting} requests are waiting already (--max_waiting); try again in {RETRY_AFTER} s"
    return RequestError(message, 503, code="overloaded")


def timed_out(seconds: float) -> RequestError:
    """Returns the error of a request that took too long."""
    return RequestError(f"the request took longer than {seconds:g} s (--timeout)", 504, code="timeout")


def stopping() -> RequestError:
    """Returns the error of a request that comes too late."""
    return RequestError("the server is stopping", 503, code="shutdown")
