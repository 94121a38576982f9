"""docs/hooks.py as a module."""

import importlib.util

from common import ROOT

spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)
