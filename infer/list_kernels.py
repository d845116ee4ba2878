"""Prints which backend each kernel runs through here, and why: python infer/list_kernels.py [device=cuda]

Examples:
  python infer/list_kernels.py
  python infer/list_kernels.py device=cpu
  python infer/list_kernels.py device=cuda:1
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.kernel_schemas import ListKernelsConfig
from euryale.cli.script import script
from euryale.report.kernel_tables import standing_table


@script("list_kernels", __doc__)
def main(config: ListKernelsConfig) -> dict[str, object]:
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.base.precision import pick_device
    from euryale.kernels.registry import ALIASES, standing

    device = pick_device(config.device, "device")
    rows = standing(device)
    print(f"device: {device}\n")
    print(standing_table(rows))
    print("\nother names: " + ", ".join(f"{other} = {name}" for other, name in ALIASES.items()))
    return {"device": str(device), "runs": {kernel: backend for kernel, backend, state, _ in rows if state == "runs"}}


if __name__ == "__main__":
    main()
