"""Serves a checkpoint in several replicas behind one address: python infer/serve_ray.py checkpoint=DIR replicas=2"""

import euryale.cli.ctrl_c  # noqa: F401  (first: what follows takes seconds to import)
from euryale.cli.script import script
from euryale.cli.serve_on_ray import serve_on_ray
from euryale.cli.serve_schema import ServeRayConfig


@script("serve_ray")
def main(config: ServeRayConfig) -> dict[str, object]:
    config.check()
    return serve_on_ray(config)


if __name__ == "__main__":
    main()
