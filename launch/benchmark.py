"""Times the synthesis step beside the model's own forward and backward pass, interleaved in one run.

    python -m launch.benchmark --config=configs/benchmark.py --workdir=DIR [--cases=deit_tiny,...] [--profile]

Writes DIR/benchmark.json, a list of cases: model, batch_size, device, dtype, jax, jaxlib, xla_flags, matmul_precision,
seconds_per_iteration (the whole synthesis step), model_pass_seconds (forward and backward with respect to the images,
cross-entropy only), overhead_ratio (the quotient of two neighbouring runs), peak_memory_bytes (by the compiler's
account), process_peak_bytes (resident, with all that came before), compile_seconds, repeats, iterations_per_repeat;
medians, with _min and _max beside them. For ViTs also flops_per_iteration and flops_per_second, which count twice the
products of the forward pass (attention's pass back to two factors, which is 2 to 7 percent more), in the time of the
whole step, and on chips that are known share_of_bf16_peak. On a CPU also processor_overhead_ratio, the quotient of
processor times: it holds on a busy machine too. --profile writes a trace of the last case's step to
DIR/profile/plugins/profile/TIME: open its perfetto_trace.json.gz at ui.perfetto.dev, or DIR/profile with `xprof`.
"""

from absl import flags

from launch import config as launch_config
from psaq_jax import benchmark, files, text_tables
from psaq_jax.workdir import results_folder

CONFIG = launch_config.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for benchmark.json.", required=True)
CASES = flags.DEFINE_list("cases", None, "Cases to time, in place of the config's.")
PROFILE = flags.DEFINE_bool("profile", False, "Write a profile of the last case.")
COLUMNS = (
    "model",
    "batch",
    "dtype",
    "ms/iteration (min..max)",
    "model's passes, ms",
    "overhead (min..max)",
    "by processor time",
    "peak MB",
    "compile s",
)


def row(r) -> tuple[str, ...]:
    low, high = r["seconds_per_iteration_min"] * 1e3, r["seconds_per_iteration_max"] * 1e3
    return (
        r["model"], str(r["batch_size"]), r["dtype"], f"{r['seconds_per_iteration'] * 1e3:.1f} ({low:.1f}..{high:.1f})",
        f"{r['model_pass_seconds'] * 1e3:.1f}",
        ratio(r, "overhead_ratio"), ratio(r, "processor_overhead_ratio"),
        f"{r['peak_memory_bytes'] / 1e6:.0f}",
        f"{r['compile_seconds']:.1f}",
    )  # fmt: skip


def ratio(r, name: str) -> str:
    return f"{r[name]:.3f} ({r[f'{name}_min']:.3f}..{r[f'{name}_max']:.3f})" if name in r else "-"


def main():
    config = launch_config.read_job(CONFIG, benchmark.BenchmarkConfig, "configs/benchmark.py")
    with results_folder(WORKDIR.value) as workdir:
        measure_cases(config, workdir)


def measure_cases(config, workdir):
    results = []
    cases = config.cases if CASES.value is None else CASES.value
    benchmark.check_cases(cases)
    benchmark.check_loadable(cases)
    for i, name in enumerate(cases):
        profile = workdir / "profile" if PROFILE.value and i == len(cases) - 1 else None
        bar, settings = launch_config.bar(name), (config.batch_size, config.dtype, config.repeats)
        results.append(benchmark.measure(name, *settings, profile=profile, progress=bar))
        files.write_json(workdir / "benchmark.json", results)
    print(text_tables.plain(COLUMNS, map(row, results), left=len(COLUMNS)))
    print(f"  results: {workdir / 'benchmark.json'} on {results[0]['device']}")


if __name__ == "__main__":
    launch_config.run(main)
