"""Prepares every language that is here, side by side, and names those that are not."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from tests.languages import ALL, InstallError


def main() -> int:
    """0 when all that are here could be prepared."""
    here = [language for language in ALL if language.here()]
    status = 0
    with ThreadPoolExecutor(len(ALL)) as pool:
        for language, result in [(language, pool.submit(language.prepare)) for language in here]:
            try:
                result.result()
            except InstallError as error:
                print(f"{language.name}: {error}", file=sys.stderr)  # noqa: T201 - a command of script/test
                status = 1
    for language in ALL:
        if language not in here:
            print(f"{language.name} is MISSING: its sample in docs/publish.md is not run (apt-get install {language.packages})")  # noqa: T201
    return status


sys.exit(main())
