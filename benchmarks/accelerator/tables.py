"""The measured parts as Markdown, one table per question."""

from collections.abc import Iterator
from typing import Any

Results = dict[str, dict[str, Any]]


def markdown(results: Results) -> str:
    """Returns the summary of all parts that have run."""
    sections = (_device, _training, _decoding, _checkpoint, _adapter, _equal, _finetune, _failures)
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section(results)))) + "\n"


def _device(results: Results) -> Iterator[str]:
    found = results.get("device", {})
    if "device" not in found:
        return
    yield f"## {found['devices']} x {found['device']}"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield f"{found['platform']}; Python {found['python']}, {versions}."
    yield ""
    yield "| | measured | published |"
    yield "|---|---|---|"
    published = found["published_flops"], found["published_bandwidth"]
    yield f"| bfloat16 product, TFLOP/s | {found['bfloat16_flops'] / 1e12:.3g} | {_scaled(published[0], 1e12)} |"
    yield f"| float32 product, TFLOP/s | {found['float32_flops'] / 1e12:.3g} | |"
    yield f"| copy, read and written, GB/s | {found['copy_bandwidth'] / 1e9:.0f} | {_scaled(published[1], 1e9, 0)} |"


def _training(results: Results) -> Iterator[str]:
    ours = [one for name, one in results.items() if name.startswith("train-") and "error" not in one]
    theirs = [one for name, one in results.items() if name.startswith("peer-train-") and "error" not in one]
    if not ours:
        return
    yield "### Training, bfloat16, AdamW"
    yield ""
    yield (
        "| model | rows x tokens | attention | remat | loss chunk | tokens/s | MFU | step s (least, median, most) | "
        "peak GB | compiler GB | `plan` GB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for one in ours:
        yield "| " + " | ".join(
            (
                f"{one['model']} ({one['parameters']:,})",
                f"{one['rows']} x {one['length']:,}",
                one["attention"],
                one["remat"],
                str(one["chunk"] or "none"),
                f"{one['tokens_per_second']:,.0f}",
                f"{one['mfu']:.3f}" if one["mfu"] else "-",
                ", ".join(f"{seconds:.4g}" for seconds in one["step_seconds"]),
                *(_scaled(one[name], 1e9) for name in ("peak_bytes", "compiled_bytes", "predicted_bytes")),
            )
        ) + " |"  # fmt: skip
    for one in theirs:
        yield (
            f"| transformers {one['versions']['transformers']}, torch {one['versions']['torch']} | {one['rows']} x "
            f"{one['length']:,} | SDPA, {'compiled' if one['compiled'] else 'eager'} | "
            f"{'full' if one['checkpointing'] else 'none'} | | {one['tokens_per_second']:,.0f} | | "
            f"{', '.join(f'{seconds:.4g}' for seconds in one['step_seconds'])} | "
            f"{_scaled(one['peak_bytes'], 1e9)} | | |"
        )


def _decoding(results: Results) -> Iterator[str]:
    ours = [one for name, one in results.items() if name.startswith("decode-") and "error" not in one]
    theirs = {
        one["rows"]: one for name, one in results.items() if name.startswith("peer-decode-") and "error" not in one
    }
    if not ours:
        return
    yield f"### Decoding, {ours[0]['model']}, bfloat16, greedy, {ours[0]['prompt']} + {ours[0]['new']} tokens"
    yield ""
    yield "| rows | tokens/s | ms per step | bandwidth's limit, tokens/s | ratio | prefill ms | transformers |"
    yield "|---|---|---|---|---|---|---|"
    for one in ours:
        limit, peer = one["limit_tokens_per_second"], theirs.get(one["rows"])
        ratio = f"{one['tokens_per_second'] / limit:.2f}" if limit else "-"
        yield (
            f"| {one['rows']} | {one['tokens_per_second']:,.0f} | {one['seconds_per_token'] * 1e3:.2f} | "
            f"{_counted(limit)} | {ratio} | {one['prefill_seconds'] * 1e3:.1f} | "
            f"{_counted(peer and peer['tokens_per_second'])} |"
        )


def _checkpoint(results: Results) -> Iterator[str]:
    one = results.get("checkpoint", {})
    if "bytes" not in one:
        return
    gb = one["bytes"] / 1e9
    yield f"### A checkpoint of {one['model']}: {gb:.2f} GB"
    yield ""
    yield "| | seconds | GB/s | plain file, GB/s |"
    yield "|---|---|---|---|"
    yield (
        f"| save | {one['save_seconds']:.2f} | {gb / one['save_seconds']:.2f} | {gb / one['plain_write_seconds']:.2f} |"
    )
    yield f"| of it, the loop waits | {one['stall_seconds']:.2f} | | |"
    yield (
        f"| restore | {one['restore_seconds']:.2f} | {gb / one['restore_seconds']:.2f} | "
        f"{gb / one['plain_read_seconds']:.2f} |"
    )


def _adapter(results: Results) -> Iterator[str]:
    found = [one for name in ("lora", "qlora-int8", "qlora-nf4") if "trained" in (one := results.get(name, {}))]
    if not found:
        return
    one = found[0]
    yield (
        f"### LoRA of rank 8 on query and value of {one['model']}, {one['rows']} x {one['length']:,}: "
        f"{one['trained']:,} trained parameters"
    )
    yield ""
    yield "| frozen matrices | tokens/s | frozen GB | peak GB |"
    yield "|---|---|---|---|"
    for one in found:
        kept = "bfloat16" if one["quantization"] == "none" else one["quantization"]
        yield (
            f"| {kept} | {one['tokens_per_second']:,.0f} | {_scaled(one['frozen_bytes'], 1e9)} | "
            f"{_scaled(one['peak_bytes'], 1e9)} |"
        )


def _equal(results: Results) -> Iterator[str]:
    found = results.get("equal-runs", {})
    if "steps" not in found:
        return
    yield f"### The same run of {found['steps']} steps, twice, and killed and resumed"
    yield ""
    yield "| XLA | twice: largest difference of the loss | resumed (killed at step) |"
    yield "|---|---|---|"
    for name, one in found.items():
        if isinstance(one, dict):
            yield (
                f"| {name} | {one['twice']['largest']:.3g} in {one['twice']['steps']} steps | "
                f"{one['resumed']['largest']:.3g} ({one['killed_at']}) |"
            )


def _finetune(results: Results) -> Iterator[str]:
    found = results.get("fine-tune", {})
    if "seconds" in found:
        yield f"### `rootstock demo`: {found['seconds']:.0f} s from start to report"
        yield ""
        yield "| model | accuracy on the test rows |"
        yield "|---|---|"
        for name, row in found["results"]["models"].items():
            accuracy = row["accuracy"]
            yield f"| {name} | {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] |"


def _failures(results: Results) -> Iterator[str]:
    for name, one in results.items():
        if "error" in one:
            yield f"- **{name}** failed: {one['error']}"


def _counted(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _scaled(value: float | None, unit: float, digits: int = 2) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"
