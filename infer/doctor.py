"""Says why tau is low on your prompts, and what helps: python infer/doctor.py checkpoint=DIR prompts=FILE

Examples:
  python infer/doctor.py checkpoint=last prompts=my-prompts.txt
  python infer/doctor.py checkpoint=last prompts=my-prompts.txt limit=32 max_new_tokens=128
  python infer/doctor.py checkpoint=last prompts=my-prompts.txt temperature=0.8 output=doctor.json
"""

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_engine
from euryale.cli.schemas import DoctorConfig
from euryale.cli.script import script, use_threads
from euryale.data.prompt_files import read_prompts
from euryale.report.result_file import check_result, write_result
from euryale.system.files import read_json
from euryale.system.paths import user_path
from euryale.system.provenance import provenance


@script("doctor", __doc__)
def main(config: DoctorConfig) -> dict[str, object]:
    check_result(config.output)
    check_engine(config)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.open_engine import open_checkpoint, open_engine
    from euryale.evaluation.diagnosis import diagnose
    from euryale.evaluation.doctor import ExamSettings, Sample, examine
    from euryale.report.doctor_table import doctor_table
    from euryale.system.hardware import hardware

    use_threads(config.threads, config.deterministic, config.seed)
    folder, description = open_checkpoint(config)
    assert folder is not None and config.prompts is not None, "DoctorConfig.check refuses both"
    read_prompts(config.prompts)  # refuses before a base is loaded
    report = read_json(folder / "report.json") if (folder / "report.json").is_file() else None
    settings = ExamSettings(config.limit, config.max_new_tokens, config.sampling(), config.seed, config.batch_size)
    case = examine(open_engine(config), config.prompts, description, report, settings, config.data)
    findings = diagnose(case, str(folder), config.prompts)
    print(doctor_table(case, findings))
    seen = {name: part._asdict() if isinstance(part, Sample) else part for name, part in case._asdict().items()}
    told = [
        finding._asdict() | {"gain": None if finding.gain == float("inf") else finding.gain} for finding in findings
    ]
    result = {"checkpoint": str(folder), "prompts": config.prompts, "findings": told, "seen": seen}
    if config.output is not None:
        write_result(user_path(config.output, "output"), result | {"hardware": hardware(), "provenance": provenance()})
    causes = [finding.cause for finding in findings]
    return {"checkpoint": str(folder), "tau": case.asked.tau, "causes": causes, "metric": case.asked.tau}


if __name__ == "__main__":
    main()
