"""A profile of steps of a run: what it has, when it is refused, and where the time of a step goes by its tables."""

import gzip
import itertools
import json
import shutil

import pytest

from configs.errors import UserError
from model.flops import training_flops_per_token
from tests.faults.tiny_run import settings_of
from tests.runs import error_lines, records, rootstock, write_text
from train.profiling.events import Execution, read_executions
from train.profiling.files import read_window, trace_files
from train.profiling.program import StepProgram, place_of
from train.profiling.summary import OTHER_PROGRAMS, newest_profile, of_executions, summarize
from train.profiling.timeline import slices, stretches_of, totals
from train.run.goodput import Goodput
from train.run.record import open_run

PRETRAIN = [
    "pretrain", "--config=configs/pretrain/tiny.py", "--config.tokenizer=bytes",
    "--config.data.validation_split=tail", "--config.batch_size=4", "--config.sequence_length=32",
    "--config.model.embed_dim=32", "--config.model.num_layers=2", "--config.model.num_heads=2",
    "--config.model.num_kv_heads=2", "--config.model.mlp_dim=64", "--config.optimizer.warmup_steps=2",
    "--config.logging.every=2", "--config.num_steps=8", "--config.checkpoint.every=4", "--config.evaluation.every=8",
    "--config.evaluation.batches=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 100)


def train(words, workdir, *flags, devices=2, check=True):
    return rootstock(
        *PRETRAIN, f"--config.data.path={words}", f"--workdir={workdir}", *flags, devices=devices, check=check
    )


@pytest.fixture(scope="module")
def profiled(words, tmp_path_factory):
    """A run on two devices whose steps 5 to 7 are profiled."""
    workdir = tmp_path_factory.mktemp("runs") / "profiled"
    done = train(words, workdir, "--config.logging.profile_steps=(5,3)")
    assert "steps 5 to 7 are profiled; rootstock profile" in done.stderr
    return workdir


@pytest.fixture(scope="module")
def summary(profiled):
    return summarize(newest_profile(profiled))


def test_the_parts_of_a_step_add_up_to_its_time(summary):
    assert (summary.devices, summary.steps) == (2, 3)
    assert sum(summary.kinds().values()) == pytest.approx(summary.seconds, rel=1e-6)
    of_step = sum(sum(times.values()) for module, times in summary.modules.items() if module != OTHER_PROGRAMS)
    assert sum(summary.directions.values()) == pytest.approx(of_step)
    assert sum(one.seconds for one in summary.operations) == pytest.approx(of_step)


def test_the_products_of_a_step_have_the_flops_of_the_model(profiled, summary):
    model = open_run(profiled).model
    expected = 4 * 32 * training_flops_per_token(model, 32) / 2
    assert summary.window.model_flops == 2 * expected
    # The model's count has half of attention's square only.
    assert summary.flops == pytest.approx(expected, rel=0.1)


def test_modules_and_kinds_of_a_step_on_two_devices(summary):
    assert {
        "mlp/up",
        "mlp/gate",
        "mlp/down",
        "attention/query",
        "attention/attend",
        "cross_entropy",
        "optimizer",
    } <= set(summary.modules)
    assert summary.modules["mlp/up"]["products"] > 0 and summary.kinds()["collectives"] > 0
    assert min(summary.directions[name] for name in ("forward", "backward", "update")) > 0
    # On a busy machine, short operations can be among the longest, and a trace can lack single executions.
    assert all(one.count > 0.5 for one in summary.operations[:10] if one.kind == "products")


def test_the_command_prints_tables_and_draws_a_page(profiled):
    shown = rootstock("profile", f"--run={profiled}", "--operations=3").stdout
    for text in ("steps: 5 to 7 of pretrain", "mlp/up", "longest operations", "xprof --logdir=", "ui.perfetto.dev"):
        assert text in shown
    assert (profiled / "profile/plugins/profile/steps-5-7/process-0.trace.json.gz").exists()
    page = (profiled / "timeline.html").read_text()
    assert "A profiled step" in page and "Time line" in page and "training steps" in page
    assert "<script" not in page and "src=" not in page and "http" not in page.replace("http-equiv", "")
    found = json.loads(rootstock("profile", f"--run={profiled}", "--step=6", "--operations=4", "--json").stdout)
    assert len(found["step"]["operations"]) == 4 and found["step"]["limits"] is None
    assert found["run"]["step"] > 0 and found["page"] == str(profiled / "timeline.html")


def test_a_run_without_a_profile_has_a_time_line_and_a_hint(foundation, tmp_path):
    run = shutil.copytree(foundation, tmp_path / "run")
    shown = rootstock("profile", f"--run={run}").stdout
    assert "no step was profiled; add --config.logging.profile_steps" in shown
    assert "Time line" in (run / "timeline.html").read_text()
    # A run of an earlier version has neither.
    lines = [{k: v for k, v in record.items() if k != "timeline"} for record in records(run)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rootstock("profile", f"--run={run}")
    assert "of an earlier version" in (run / "timeline.html").read_text()


@pytest.mark.parametrize("window", [(0, 3), (3, 0), (-1, 2), (3,), (1, 2, 3), (1, 101)])
def test_an_impossible_window_is_refused(window):
    with pytest.raises(UserError, match=r"config\.logging\.profile_steps=.*expected \(FIRST, COUNT\)"):
        settings_of(**{"logging.profile_steps": window})


@pytest.mark.parametrize(("window", "last"), [("(9,1)", 9), ("(7,3)", 9), ("(1,10)", 10)])
def test_a_window_outside_the_run_is_refused_when_it_starts_and_when_it_resumes(
    profiled, words, tmp_path, window, last
):
    for workdir in (tmp_path / "new", profiled):
        done = train(words, workdir, f"--config.logging.profile_steps={window}", check=False)
        (line,) = error_lines(done)
        assert f"to {last}; expected steps from 1 to config.num_steps=8" in line and done.returncode == 1


@pytest.mark.slow
def test_a_resumed_run_profiles_the_steps_that_are_left(profiled, words, tmp_path):
    losses = [r["loss"] for r in records(profiled) if r["phase"] == "train"]
    run = shutil.copytree(profiled, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "8")
    shutil.rmtree(run / "profile")
    done = train(words, run, "--config.logging.profile_steps=(3,4)")
    assert "steps 5 to 6 are profiled" in done.stderr and summarize(newest_profile(run)).steps == 2
    assert [r["loss"] for r in records(run) if r["phase"] == "train"] == losses
    shutil.rmtree(run / "checkpoints" / "8")
    done = train(words, run, "--config.logging.profile_steps=(2,3)")
    assert "steps 2 to 4 are done, so none of them is profiled" in done.stderr
    assert newest_profile(run).name == "steps-5-6"
    # The window ends with the run; two profiles are told apart by a step.
    shutil.rmtree(run / "checkpoints" / "8")
    train(words, run, "--config.logging.profile_steps=(8,1)")
    assert newest_profile(run).name == "steps-8-8" and newest_profile(run, 6).name == "steps-5-6"
    with pytest.raises(UserError, match=r"--step=7 is not in a profile .* steps with a profile: 5 to 6, 8 to 8"):
        newest_profile(run, 7)


@pytest.mark.parametrize("name", ["process-0.xplane.pb", "program.hlo.txt.gz", "window.json"])
def test_a_damaged_profile_is_a_one_line_error(profiled, tmp_path, name):
    run = shutil.copytree(profiled, tmp_path / "run")
    path = newest_profile(run) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = rootstock("profile", f"--run={run}", check=False)
    (line,) = error_lines(done)
    assert str(newest_profile(run)) in line and done.returncode == 1
    path.unlink()
    (line,) = error_lines(rootstock("profile", f"--run={run}", check=False))
    assert str(newest_profile(run)) in line


@pytest.mark.parametrize(
    ("op_name", "place"),
    [
        ("jit(train_step)/jvp()/while/body/eval_jaxpr/Block/mlp/up/BTD,DF->BTF/dot_general", ("mlp/up", "forward")),
        ("jit(train_step)/transpose(jvp(Norm))/jvp(Norm)/checkpoint/mul", ("Norm", "backward")),
        (
            "jit(train_step)/transpose(jvp())/while/body/eval_jaxpr/Block/mlp/Block/mlp/checkpoint/"
            "rematted_computation/jit(silu)/mul",
            ("mlp", "backward"),
        ),
        (
            "jit(train_step)/transpose(jvp())/while/body/eval_jaxpr/Block/attention/attention._normed/key_norm/Block/"
            "attention/attention._normed/key_norm/checkpoint/mul",
            ("attention/key_norm", "backward"),
        ),
        (
            "jit(train_step)/jvp(cross_entropy)/while/body/eval_jaxpr/BTD,VD->BTV/dot_general",
            ("cross_entropy", "forward"),
        ),
        ("jit(train_step)/transpose(jvp())/while/body/jit(dynamic_index_in_dim)/dynamic_slice", ("layers", "backward")),
        ("jit(train_step)/jit(tree_bias_correction)/div", ("optimizer", "update")),
        ("jit(train_step)/mul;jit(train_step)/jvp(Norm)/mul", ("optimizer", "update")),
    ],
)
def test_the_module_of_an_operation(op_name, place):
    assert place_of(op_name) == place


# One operation of each kind, as XLA's compilers for CPU, TPU and GPU write them.
_GEMM = '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
HLO = f"""HloModule jit_train_step, is_scheduled=true, num_partitions=2

%fused (p0: f32[8,16], p1: f32[16,4]) -> f32[8,4] {{
  %p0 = f32[8,16]{{1,0}} parameter(0)
  %p1 = f32[16,4]{{1,0}} parameter(1)
  %t = f32[8,16]{{1,0}} negate(%p0)
  ROOT %d = f32[8,4] dot(%t, %p1), lhs_contracting_dims={{1}}, metadata={{op_name="jit(s)/jvp(A)/dot_general"}}
}}

%moved (q0: f32[8,16]) -> f32[16,8] {{
  %q0 = f32[8,16]{{1,0}} parameter(0)
  %c = f32[8,16]{{1,0}} copy(%q0)
  ROOT %u = f32[16,8]{{1,0}} transpose(%c), dimensions={{1,0}}
}}

ENTRY %main (a: f32[8,16], b: f32[16,4]) -> f32[8,4] {{
  %a = f32[8,16]{{1,0}} parameter(0)
  %b = f32[16,4]{{1,0}} parameter(1)
  %product = f32[8,4]{{1,0}} fusion(%a, %b), kind=kOutput, calls=%fused
  %copies = f32[16,8]{{1,0}} fusion(%a), kind=kLoop, calls=%moved
  %conv = f32[8,4] convolution(%a, %b), dim_labels=bf_io->bf, metadata={{op_name="jit(s)/transpose(jvp(B))/mul"}}
  %gemm = f32[8,4] custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={_GEMM}
  %sum = f32[8,4]{{1,0}} all-reduce(%product), channel_id=1, replica_groups={{{{0,1}}}}, to_apply=%add
  ROOT %sine = f32[8,4]{{1,0}} sine(%sum), metadata={{op_name="jit(s)/sin"}}
}}
"""


@pytest.mark.parametrize(
    ("name", "kind", "module", "flops"),
    [
        ("product", "products", "A", 2 * 8 * 16 * 4),
        ("conv", "products", "B", 2 * 8 * 16 * 4),
        ("gemm", "products", "(no name)", 2 * 8 * 16 * 4),
        ("copies", "copies", "(no name)", 0),
        ("sum", "collectives", "(no name)", 0),
        ("sine", "other", "optimizer", 0),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "collectives", "(no name)", 0),
        ("sm90_xmma_gemm_bf16bf16", "products", "(no name)", 0),
    ],
)
def test_the_kind_and_flops_of_an_operation(name, kind, module, flops):
    found = StepProgram(HLO).operation(name)
    assert (found.kind, found.module, found.flops) == (kind, module, flops)


def test_operations_that_overlap_share_the_time_and_gaps_are_idle(profiled):
    window, _ = read_window(newest_profile(profiled))
    program = StepProgram(HLO)

    def executed(operation, start, end, name=program.name):
        return Execution("cpu:0", name, operation, start * 1e9, end * 1e9)

    found = of_executions(
        window,
        program,
        {
            "0": [
                *(executed("product", 0, 4), executed("copies", 2, 4), executed("sine", 6, 7)),
                *(executed("sum", 7, 7.5, "jit_evaluate"), executed("product", 9, 10)),
                # Before the first step and after the last one.
                *(executed("sine", -3, -2, "jit_evaluate"), executed("sine", 20, 21, "jit_evaluate")),
            ]
        },
    )
    # Two steps in ten seconds.
    assert (found.steps, found.seconds) == (2, 5)
    assert found.kinds() == {"products": 2.0, "copies": 0.5, "collectives": 0.0, "other": 0.75, "idle": 1.75}
    assert found.modules[OTHER_PROGRAMS] == {"other": 0.25}
    assert [(one.name, one.count) for one in found.operations] == [("product", 1), ("copies", 0.5), ("sine", 0.5)]


def test_a_product_of_a_cpu_ends_when_its_threads_are_done(profiled):
    """XLA's CPU runtime starts products and returns; without their ends they look idle."""
    _, text = read_window(newest_profile(profiled))
    program = StepProgram(text)
    executions = read_executions(trace_files(newest_profile(profiled))[0])
    assert {one.device for one in executions} == {"cpu:0", "cpu:1"}
    loops = [one for one in executions if one.program == program.name and program.operation(one.operation).container]
    assert loops, "loops contain operations that the trace has as well"
    # A loop returns at once, too; with its end it has its body inside.
    inside = [one for one in executions if any(loop.start < one.start and one.end <= loop.end for loop in loops)]
    assert len(inside) > len(executions) / 4


def test_the_time_line_has_all_time_of_the_run_in_order(profiled):
    lines = records(profiled)
    stretches = stretches_of(lines)
    parts = [r["parts"] for r in lines if r["phase"] == "goodput"][-1]
    for part, seconds in totals(stretches).items():
        assert seconds == pytest.approx(parts[part], abs=1e-3)
    assert sum(s.seconds for s in stretches) == pytest.approx(sum(parts.values()), abs=5e-3)
    kinds = [next(iter(s.parts)) for s in stretches if s.seconds > 1e-4]
    assert kinds[0] in ("start", "compile") and {"checkpoint", "evaluation", "profile"} <= set(totals(stretches))
    assert all(b.start == pytest.approx(a.start + a.seconds) for a, b in itertools.pairwise(stretches))
    for count in (1, 7, 250):
        found = slices(stretches, count)
        whole = sum(s.seconds for s in stretches)
        assert [sum(one.values()) for one in found] == pytest.approx([whole / count] * count, rel=1e-4)


def test_alternating_parts_are_one_stretch_and_compilation_belongs_to_what_it_interrupts(monkeypatch):
    # Each look at the clock takes a second; real ones may take less than is drawn.
    clock = itertools.count(1.0)
    monkeypatch.setattr("train.run.goodput.time.perf_counter", lambda: next(clock))
    times = Goodput(0.0)
    for part in ("step", "data", "step", "compile", "step", "data", "evaluation", "compile", "evaluation", "step"):
        times.enter(part)
    found = [set(stretch) for stretch in times.timeline()]
    assert found[0] == {"start"} and len(found) == 4
    assert found[1] == {"step", "data", "compile"} and "evaluation" in found[2] and found[3] == {"step"}
    assert all(set(stretch) == {"step"} for stretch in times.timeline()), "each second is drawn once"


def test_the_program_of_a_profile_is_the_compiled_step(profiled):
    text = gzip.decompress((newest_profile(profiled) / "program.hlo.txt.gz").read_bytes()).decode()
    assert text.startswith("HloModule jit_train_step") and "op_name=" in text
