"""The figures of a profile as text, for the terminal and for the page."""

from train.hardware import CHIPS
from train.profiling.summary import OperationTime, Summary


def seconds_text(seconds: float) -> str:
    """Returns a duration in the unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def amount(number: float) -> str:
    """Returns a number with a decimal prefix: 3.2 G."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "


def described(summary: Summary) -> list[tuple[str, str]]:
    """Returns the properties of a profile, name -> value."""
    window, seconds = summary.window, summary.seconds
    kinds, limits = summary.kinds(), summary.limits()
    busy = max(sum(summary.directions.values()), 1e-12)
    flops_limit, bytes_limit = limits or (0.0, 0.0)
    chip = "limits of this chip are not in the table of train/hardware.py"
    if limits is not None and window.chip is not None:
        source = CHIPS[window.chip].source
        chip = f"{window.chip}: {amount(flops_limit)}FLOP/s and {amount(bytes_limit)}B/s per device ({source})"
    return [
        ("steps", f"{window.first} to {window.last} of {window.title}, {summary.devices} device(s), {window.versions}"),
        ("device", f"{window.device_kind}; {chip}"),
        ("time per step", f"{seconds_text(seconds)}, {amount(window.tokens / seconds)}tokens/s"),
        ("kinds", ", ".join(f"{kind} {value / seconds:.1%}" for kind, value in kinds.items())),
        ("parts", ", ".join(f"{name} {value / busy:.1%}" for name, value in summary.directions.items())),
        ("products", _rate(summary.flops, seconds, flops_limit, "FLOP")),
        ("products while they run", _rate(summary.flops, kinds["products"], flops_limit, "FLOP")),
        ("memory traffic", _rate(summary.bytes, seconds, bytes_limit, "B")),
    ]


def _rate(number: float, seconds: float, limit: float, unit: str) -> str:
    if not seconds:
        return f"{amount(number)}{unit}"
    rate = number / seconds
    share = f", {rate / limit:.1%} of the limit" if limit else ""
    return f"{amount(number)}{unit} per step and device, {amount(rate)}{unit}/s{share}"


def measured(one: OperationTime, summary: Summary) -> list[str]:
    """Returns an operation's cells: name, kind, module, executions, ms, share, FLOPs and bytes beside the limits."""
    flops_limit, bytes_limit = summary.limits() or (0.0, 0.0)
    return [
        one.name,
        one.kind,
        one.module,
        f"{one.count:g}",
        f"{one.seconds * 1e3:,.2f}",
        f"{one.seconds / summary.seconds:.1%}",
        _cell(one.flops, one.seconds, flops_limit, "FLOP"),
        _cell(one.bytes, one.seconds, bytes_limit, "B"),
    ]


def _cell(number: float, seconds: float, limit: float, unit: str) -> str:
    if not number or not seconds:
        return ""
    share = f" ({number / seconds / limit:.0%})" if limit else ""
    return f"{amount(number)}{unit}, {amount(number / seconds)}{unit}/s{share}"
