"""Self-contained HTML pages: jinja2 templates with a shared style and script."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Fill a template of `gkp.artifact`; values are escaped. Its filter `digest` gives the hash of a script for CSP."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("gkp.artifact", "."), autoescape=True)
    environment.filters["digest"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return environment.get_template(template).render(**values) + "\n"
