"""Serves a checkpoint in several replicas behind one address: python infer/serve_ray.py checkpoint=DIR replicas=2

Examples:
  python infer/serve_ray.py checkpoint=last replicas=2
  python infer/serve_ray.py checkpoint=smollm2-heads replicas=4 cores=2 port=8080
  python infer/serve_ray.py checkpoint=last max_rows=16 deadline=120
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_engine
from euryale.cli.script import script
from euryale.cli.serve_schema import ServeRayConfig


@script("serve_ray", __doc__)
def main(config: ServeRayConfig) -> dict[str, object]:
    check_engine(config)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.serve_on_ray import serve_on_ray

    return serve_on_ray(config)


if __name__ == "__main__":
    main()
