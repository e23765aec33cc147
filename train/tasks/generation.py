"""Text in, text out: summaries, translation, answers. The model's own head goes on learning, on the answers alone."""

from configs.errors import UserError
from data.examples import Rendered, text_segment
from data.labeled import Example, column, fill
from data.readers import Row
from data.templates import render as render_messages
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, language_model
from train.evaluation import metrics as figures
from train.evaluation.interval import Interval
from train.settings import LossSettings, TaskSettings
from train.tasks.task import Facts, Prediction, Task, Untrained

# What a model writes where a question has no answer.
_NO_ANSWER = "no answer"
_METRICS = {"rouge": figures.rouge, "bleu": figures.bleu_chrf, "squad": figures.squad}


def parse(row: Row, task: TaskSettings) -> Example:
    """Returns fields {"input", "references"}: all texts that would be right, the first of which is trained on."""
    text = fill(task.input, row, "config.task.input")
    references = texts_of(column(row, task.target, "config.task.target"), task.target)
    group = fill(task.group, row, "config.task.group") if task.group else text
    content = "\n".join([text, *references[:1]])
    return Example(content, group, {"input": text, "references": references})


def texts_of(value: object, name: str) -> list[str]:
    """Returns the texts of a column that holds one, a list of them, or SQuAD's answers (a list, or a dict of lists).

    Raises:
        UserError: it holds something else, or an empty text.
    """
    if isinstance(value, dict):
        value = value.get("text")
    texts = value if isinstance(value, list) else [value]
    texts = [item.get("text") if isinstance(item, dict) else item for item in texts]
    if any(not isinstance(text, str) or not text.strip() for text in texts):
        raise UserError(f"{name!r} is {value!r:.80}; legal: a text, a list of texts, or SQuAD's answers")
    return [str(text) for text in texts]


def facts(examples: list[Example], task: TaskSettings) -> Facts:
    """Returns how the texts are put to the model and which figures are wanted.

    Raises:
        UserError: an unknown metric.
    """
    unknown = [name for name in task.metrics if name not in _METRICS]
    if unknown or not task.metrics:
        raise UserError(f"config.task.metrics is {task.metrics}; legal: some of {', '.join(_METRICS)}")
    return {"template": task.template, "metrics": list(task.metrics), "prompt": task.prompt}


def render(example: Example, facts: Facts, tokenizer: Tokenizer, length: int) -> Rendered | None:
    """Returns input and answer as the template puts them, the answer alone as targets; None: no answer was left."""
    answer = (example.fields["references"] or [_NO_ANSWER])[0]
    messages = [{"role": "user", "content": example.fields["input"]}, {"role": "assistant", "content": answer}]
    rendered = render_messages(messages, facts["template"], tokenizer, length + 1)
    return Rendered((text_segment(rendered.tokens, rendered.mask),), rendered.cut) if any(rendered.mask[1:]) else None


def ask(example: Example, facts: Facts, tokenizer: Tokenizer, room: int) -> list[int]:
    """Returns the prompt, cut to `room` tokens."""
    messages = [{"role": "user", "content": example.fields["input"]}]
    return render_messages(messages, facts["template"], tokenizer, room, prompt=True).tokens


def objective(model: ModelConfig, facts: Facts, loss: LossSettings) -> Objective:
    """Returns next-token prediction."""
    return language_model(model, loss.z_loss, loss.chunk, loss.label_smoothing)


def metrics(
    examples: list[Example], predictions: list[Prediction], untrained: list[Prediction] | None, facts: Facts
) -> dict[str, Interval]:
    """Returns the figures of `config.task.metrics`: ROUGE-1, -2 and -L, BLEU and chrF, SQuAD's exact match and F1."""
    references = [example.fields["references"] for example in examples]
    found: dict[str, Interval] = {}
    for name in facts["metrics"]:
        answers = ["" if name == "squad" and text.strip() == _NO_ANSWER else text for text in predictions]
        found |= _METRICS[name](references, answers)
    return found


def show(example: Example, prediction: Prediction | None, facts: Facts) -> str:
    """Returns the text."""
    return (example.fields["references"] or [_NO_ANSWER])[0] if prediction is None else prediction


def _prompt(example: Example, facts: Facts) -> tuple[str, str]:
    return facts["prompt"].replace("{input}", example.fields["input"]), show(example, None, facts)


TASK = Task(
    parse=parse,
    facts=facts,
    render=render,
    objective=objective,
    read=None,
    metrics=metrics,
    show=show,
    ask=ask,
    untrained=Untrained(_prompt, None, lambda answers, facts: answers[0]),
    language=True,
)
