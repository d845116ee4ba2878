"""Prints which backend each kernel runs through here, and why: python infer/list_kernels.py [device=cuda]"""

import euryale.cli.ctrl_c  # noqa: F401  (first: what follows takes seconds to import)
from euryale.base.precision import pick_device
from euryale.cli.kernel_schemas import ListKernelsConfig
from euryale.cli.script import script
from euryale.kernels.registry import ALIASES, standing
from euryale.report.kernel_tables import standing_table


@script("list_kernels")
def main(config: ListKernelsConfig) -> dict[str, object]:
    device = pick_device(config.device, "device")
    rows = standing(device)
    print(f"device: {device}\n")
    print(standing_table(rows))
    print("\nother names: " + ", ".join(f"{other} = {name}" for other, name in ALIASES.items()))
    return {"device": str(device), "runs": {kernel: backend for kernel, backend, state, _ in rows if state == "runs"}}


if __name__ == "__main__":
    main()
