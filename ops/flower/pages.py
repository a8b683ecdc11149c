"""Celeriac's pages in Flower: tabs of its navbar, made of its templates, behind its options.

Flower has no plugins. What it makes its application of are two objects of `flower.urls`, and its configuration file is
read before it does: there we put our handlers before the one that answers 404, and a loader that finds our templates
beside Flower's. Whatever of Flower this stands on is looked at when it starts.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

import flower
from flower import urls
from tornado.template import Loader, Template
from tornado.web import StaticFileHandler, url

from celeriac.errors import Misconfigured
from celeriac.settings import Settings, load_settings
from ops.flower import costs, jobs, providers
from ops.flower.handlers import SOURCES, STATIC
from ops.flower.sources import Sources

HERE: Final = Path(__file__).parent
TEMPLATES: Final = HERE / "templates"

#: Name of the route -> what the tab says.
TABS: Final = {"costs": "Costs", "jobs": "Jobs", "providers": "Providers"}
TAB: Final = """
        <li class="nav-item">
          <a class="nav-link{{% if active_tab == '{name}' %}} active{{% end %}}"
            href="{{{{ reverse_url('{name}') }}}}"
            {{% if active_tab == '{name}' %}}aria-current="page"{{% end %}}>{title}</a>
        </li>"""
#: The last of Flower's own tabs, after which ours stand.
BROKER: Final = re.compile(
    r"<li class=\"nav-item\">(?:(?!</li>).)*\{\{ reverse_url\('broker'\) \}\}(?:(?!</li>).)*</li>", re.DOTALL
)
#: What our templates fill in.
BLOCKS: Final = ("title", "navbar", "container", "extra_scripts")

HANDLERS: Final = (
    url(r"/costs", costs.CostsPage, name="costs"),
    url(r"/costs/data", costs.CostsData, name="costs_data"),
    url(r"/jobs", jobs.JobsPage, name="jobs"),
    url(r"/jobs/data", jobs.JobsData, name="jobs_data"),
    url(r"/jobs/act", jobs.JobsAct, name="jobs_act"),
    url(r"/job/([^/]+)", jobs.JobPage, name="job"),
    url(r"/job/([^/]+)/data", jobs.JobData, name="job_data"),
    url(r"/providers", providers.ProvidersPage, name="providers"),
    url(r"/providers/data", providers.ProvidersData, name="providers_data"),
    url(r"/celeriac/static/(.+)", StaticFileHandler, {"path": str(STATIC)}, name="celeriac_static"),
)


def add_pages(settings: Settings | None = None) -> None:
    """For the configuration file that Flower reads. What keeps Flower from having our pages ends it, and says so."""
    try:
        _add(settings or load_settings(), urls.handlers, urls.settings)
    except Misconfigured as error:
        print(f"celeriac: {error}", file=sys.stderr)  # noqa: T201  # the operator is at a terminal or reads the last line
        raise SystemExit(2) from None


def _add(settings: Settings, handlers: list[Any], options: dict[str, Any]) -> None:
    theirs = Path(options["template_path"])
    check_flower(theirs, handlers)
    sources = Sources(settings)
    options |= {SOURCES: sources, "template_loader": Templates(str(theirs))}
    handlers[-1:-1] = HANDLERS


def check_flower(templates: Path, handlers: list[Any]) -> None:
    """Raises Misconfigured where Flower is not as we know it, saying what is missing."""
    with_tabs((templates / "navbar.html").read_text())
    base = (templates / "base.html").read_text()
    if missing := [block for block in BLOCKS if f"{{% block {block} %}}" not in base]:
        raise Misconfigured(f"{_this()} has no block {', '.join(missing)} in its base.html; {REMEDY}")
    last = handlers[-1]
    if not isinstance(last, tuple) or last[0] != r".*":
        raise Misconfigured(f"{_this()} does not end its handlers with the one for what is not found; {REMEDY}")


REMEDY: Final = (
    "install the release of requirements.lock, or take add_pages out of flowerconfig.py to do without our pages"
)


def _this() -> str:
    return f"Flower {flower.__version__}"


def with_tabs(navbar: str) -> str:
    """Flower's navbar with our tabs after its own. Raises Misconfigured where they have no place in it."""
    found = BROKER.findall(navbar)
    if len(found) != 1:
        raise Misconfigured(f"{_this()} has no tab in its navbar after which ours could stand; {REMEDY}")
    tabs = "".join(TAB.format(name=name, title=title) for name, title in TABS.items())
    return navbar.replace(found[0], found[0] + tabs)


class Templates(Loader):
    """Ours, and Flower's: its navbar with our tabs in it."""

    def _create_template(self, name: str) -> Template:
        ours = TEMPLATES / name
        if ours.is_file():
            return Template(ours.read_bytes(), name=name, loader=self)
        if name == "navbar.html":
            return Template(with_tabs((Path(self.root) / name).read_text()), name=name, loader=self)
        return super()._create_template(name)
