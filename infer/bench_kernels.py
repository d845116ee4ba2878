"""Times every kernel against its specification and a copy: python infer/bench_kernels.py [output=FILE.jsonl]

Examples:
  python infer/bench_kernels.py
  python infer/bench_kernels.py kernels=[tree_attention] nodes=[1,64]
  python infer/bench_kernels.py dtype=float16 shapes.context=4096 output=kernels.jsonl
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.kernel_schemas import BenchKernelsConfig
from euryale.cli.script import script, use_threads
from euryale.report.kernel_tables import kernel_bench_table
from euryale.report.result_file import check_result, write_result
from euryale.system.files import write_atomically
from euryale.system.paths import user_path
from euryale.system.provenance import provenance


@script("bench_kernels", __doc__)
def main(config: BenchKernelsConfig) -> dict[str, object]:
    check_result(config.output)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.base.precision import pick_device
    from euryale.evaluation.bench_kernels import bench_dtype, bench_kernels, check_memory, copy_bandwidth
    from euryale.report.plot_kernels import kernel_plot
    from euryale.system.hardware import hardware

    use_threads(config.threads)
    device, dtype = pick_device(config.device, "device"), bench_dtype(config.dtype)
    check_memory(config.shapes, max(config.nodes), dtype, device, config.kernels)
    gb_per_s = copy_bandwidth(device, config.repeats) / 1e9
    rows = []
    for num_nodes in config.nodes:
        rows += bench_kernels(config.shapes, num_nodes, dtype, device, config.kernels, config.repeats)
    print(kernel_bench_table(rows, gb_per_s))
    result = {
        "dtype": config.dtype, "device": str(device), "copy_gb_per_s": gb_per_s, "shapes": vars(config.shapes),
        "rows": rows, "hardware": hardware(), "provenance": provenance(),
    }  # fmt: skip
    if config.output is not None:
        file = user_path(config.output, "output")
        write_result(file, result)
        with write_atomically(file.with_suffix(".png")) as staged:
            staged.write_bytes(kernel_plot(rows, gb_per_s, hardware()))
        print(f"\n{file}\n{file.with_suffix('.png')}")
    return result


if __name__ == "__main__":
    main()
