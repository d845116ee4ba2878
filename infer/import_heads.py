"""Takes Medusa heads published for other servers: python infer/import_heads.py source=DIR [base.path=MODEL]

Examples:
  python infer/import_heads.py source=medusa-vicuna-7b
  python infer/import_heads.py source=medusa-vicuna-7b base.path=my-vicuna output=imported
  python infer/import_heads.py source=medusa-vicuna-7b base.quantization=nf4
"""

from dataclasses import replace

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.schemas import ImportHeadsConfig
from euryale.cli.script import script, use_threads
from euryale.data.prompt_files import read_prompts
from euryale.errors import UserError
from euryale.system.paths import PROJECT, argument, user_path
from euryale.system.provenance import provenance

_NUM_PROMPTS, _NUM_TOKENS = 4, 32  # of the answers that show whether the heads fit the base


@script("import_heads", __doc__)
def main(config: ImportHeadsConfig) -> dict[str, object]:
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.base.base import load_base
    from euryale.data.tokens import prompt_ids
    from euryale.decoding.engine import Engine
    from euryale.heads.published import check_output, import_heads, named_base

    use_threads(config.threads)
    assert config.source is not None, "ImportHeadsConfig.check refuses none"
    source = user_path(config.source, "source")
    named = named_base(source)  # refuses a folder without heads, whatever base is given
    path = config.base.path or named
    if path is None:
        raise UserError(f"{source / 'config.json'} names no base. Give the one they were trained for: base.path=MODEL.")
    output = user_path(config.output, "output") if config.output else PROJECT / "checkpoints" / source.resolve().name
    check_output(output)  # before the base is loaded
    quantization = "none" if config.base.quantization == "auto" else config.base.quantization
    base = load_base(replace(config.base, path=path, quantization=quantization))
    made = import_heads(source, output, base, provenance())
    texts = read_prompts(PROJECT / "data" / "prompts.txt", _NUM_PROMPTS)
    prompts = [prompt_ids(text.text, text.messages, base.tokenizer) for text in texts]
    answers = Engine(base, made.heads, "heads", "chain").generate(prompts, _NUM_TOKENS)
    tau = sum(len(answer.ids) for answer in answers) / sum(answer.num_steps for answer in answers)
    print(
        f"{output}: {made.num_heads} heads of {made.num_layers} layers, output={made.output}; a chain of their first "
        f"guesses gains tau {tau:.2f} on {_NUM_PROMPTS} openings of code\n"
        "next, the fastest tree for this machine: "
        f"python infer/calibrate.py {argument('checkpoint', output)} prompts=FILE"
    )
    told = {"num_heads": made.num_heads, "num_layers": made.num_layers, "output": made.output}
    return {"checkpoint": str(output), "base": path} | told | {"tau": tau, "metric": tau}


if __name__ == "__main__":
    main()
