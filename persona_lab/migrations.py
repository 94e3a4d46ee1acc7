"""Deprecated path of ``python -m persona_lab.db.migrations``, until 0.2."""

import runpy

from persona_lab.deprecated import warn_of_former_name

if __name__ == "__main__":
    warn_of_former_name("persona_lab.migrations", "persona_lab.db.migrations", stacklevel=1)
    runpy.run_module("persona_lab.db.migrations", run_name="__main__", alter_sys=True)
