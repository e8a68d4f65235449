"""Times the synthesis step beside the model's own forward and backward pass, interleaved in one run.

    python -m launch.benchmark --config=configs/benchmark.py --workdir=DIR [--cases=deit_tiny,...] [--profile]

Writes DIR/report.html, and DIR/benchmark.json, a list of cases: model, batch_size, device, dtype, jax, jaxlib,
xla_flags, matmul_precision, seconds_per_iteration (the whole synthesis step), model_pass_seconds (forward and backward
with respect to the images, cross-entropy only), overhead_ratio (the quotient of two neighbouring runs),
peak_memory_bytes (by the compiler's account), process_peak_bytes (resident, with all that came before),
compile_seconds, repeats, iterations_per_repeat; medians, with _min and _max beside them; flops_per_iteration and
flops_per_second, which count twice the products of the forward pass (attention's pass back to two factors, which is 2
to 7 percent more), in the time of the whole step, and on chips that are known share_of_bf16_peak; fused_attention. On
a CPU also processor_overhead_ratio, the quotient of processor times: it holds on a busy machine too. --profile writes a
trace of the last case's step to DIR/profile/plugins/profile/TIME: open its perfetto_trace.json.gz at ui.perfetto.dev,
or DIR/profile with `xprof`.
--config.topology=v5e:2x2 compiles for a TPU chip that is not there (libtpu: extra `tpu`) and runs nothing: in the place
of seconds are cycles_per_iteration and model_pass_cycles, which are the compiler's estimates.
"""

import dataclasses

from absl import flags

from launch import config as launch_config
from launch import console, pages
from psaq_jax import benchmark, files, topologies
from psaq_jax.cases import check_loadable
from psaq_jax.errors import InputError
from psaq_jax.workdir import results_folder

CONFIG = launch_config.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for benchmark.json and report.html.", required=True)
CASES = flags.DEFINE_list("cases", None, "Cases to time, in place of the config's.")
PROFILE = flags.DEFINE_bool("profile", False, "Write a profile of the last case.")


def main():
    config = launch_config.read_job(CONFIG, benchmark.BenchmarkConfig, "configs/benchmark.py")
    if CASES.value is not None:
        config = dataclasses.replace(config, cases=tuple(CASES.value))
    if config.topology and PROFILE.value:
        found = f"config.topology={config.topology} runs nothing that could be profiled"
        raise InputError(f"{found}; leave --profile or the topology out")
    with results_folder(WORKDIR.value) as workdir:
        measure_cases(config, workdir)


def measure_cases(config, workdir):
    results = []
    check_loadable(config.cases)
    told = topologies if config.topology else benchmark
    chip = topologies.chip(config.topology) if config.topology else None
    for i, name in enumerate(config.cases):
        if chip:
            results.append(topologies.estimate(name, config.batch_size, config.dtype, chip))
        else:
            profile = workdir / "profile" if PROFILE.value and i == len(config.cases) - 1 else None
            bar, settings = console.bar(name), (config.batch_size, config.dtype, config.repeats)
            by = config.fused_attention
            results.append(benchmark.measure(name, *settings, profile=profile, progress=bar, fused_attention=by))
        files.write_json(workdir / "benchmark.json", results)
    table = told.table(results)
    page = pages.write_tables(
        workdir, config, [table], heading=", ".join(config.cases), kind="speed report", lead=told.answer(results)
    )
    print(table.plain())
    print(f"  results: {workdir / 'benchmark.json'} on {results[0]['device']}\n  report: {page}")


if __name__ == "__main__":
    launch_config.run(main)
