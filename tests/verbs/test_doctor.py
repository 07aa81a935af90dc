"""The doctor finds nothing wrong here, and tells what is wrong elsewhere instead of failing itself."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from fssops import _native, doctor


def _without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = metadata.version

    def version(name: str) -> str:
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)


def test_every_operator_runs_on_the_cpu_and_agrees_with_its_definition() -> None:
    checks = [check for check in doctor.examine().checks if check.device == "cpu"]
    assert {check.operator for check in checks} == set(doctor.OPERATORS)
    for check in checks:
        assert check.runs, check.reason
        assert check.error is not None
        assert 0 <= check.error < doctor.TOLERANCE


def test_nothing_is_cut_where_no_terminal_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    report = doctor.Report(
        versions={"rich": "15", "platform": "Linux " + 40 * "x"},
        library="/a/[long]/path" + 40 * "/folder",
        checks=[doctor.Check(name, "cuda", False, "no CUDA: " + 40 * "why ") for name in doctor.OPERATORS],
        problems=["libfssops_cpu.so: undefined symbol " + 40 * "_Z"],
    )
    monkeypatch.setattr(doctor, "examine", lambda: report)
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    whole = [
        *report.versions.values(),
        report.library,
        *report.problems,
        *doctor.OPERATORS,
        report.checks[0].reason.strip(),
    ]
    assert [value for value in whole if value not in text] == []
    assert "…" not in text


def test_report_is_printed_as_json_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (1 if report["problems"] else 0)
    assert report["build"]["instruction_sets"]


def test_missing_package_is_a_problem_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _without("rich", monkeypatch)
    assert doctor.main([]) == 1
    report = json.loads(capsys.readouterr().out)  # the tables need the package that is missing
    assert "rich is missing; install it with: pip install rich" in report["problems"]


def test_library_that_cannot_be_loaded_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise _native.NativeLibraryError("fssops cannot load _C.so: undefined symbol; rebuild it with: pip install .")

    monkeypatch.setattr(_native, "extension", broken)
    report = doctor.examine()
    assert "fssops cannot load _C.so: undefined symbol; rebuild it with: pip install ." in report.problems
    assert not any(check.runs for check in report.checks)


def test_unknown_backend_is_named_with_the_choices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FSSOPS_BACKEND", "fast")
    assert doctor.main([]) == 1
    assert "FSSOPS_BACKEND must be native or reference, got 'fast'; unset it" in capsys.readouterr().out
