"""What our pages have in common: Flower's auth and options hold for them, and a store that is away is said."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import orjson
from flower.views import BaseHandler
from tornado.web import HTTPError, RequestHandler, StaticFileHandler, authenticated

from celeriac.connections import answering
from celeriac.errors import CeleriacError, Conflict, Invalid, NotFound, StoreUnavailable
from ops.flower.sources import PATIENCE, Sources

STATIC: Final = Path(__file__).parent / "static"
#: Under this name Flower's application holds what our handlers read.
SOURCES: Final = "celeriac"
#: Which of our errors is which status; what is none of them is a fault of ours.
STATUS: Final[dict[type[CeleriacError], int]] = {Invalid: 400, NotFound: 404, Conflict: 409, StoreUnavailable: 503}


def set_own_headers(handler: RequestHandler) -> None:
    """In place of Flower's, which lets other sites read an instance that asks nobody who they are. What our handlers
    say is no business of theirs, and no other site lays our buttons under its own.
    """
    handler.set_header("X-Content-Type-Options", "nosniff")
    handler.set_header("Cache-Control", "no-store")
    handler.set_header("Content-Security-Policy", "frame-ancestors 'self'")
    handler.set_header("Referrer-Policy", "same-origin")


class Handler(BaseHandler):  # type: ignore[misc]  # Flower has no types
    """May read whatever Flower's own pages may be read by."""

    def set_default_headers(self) -> None:
        set_own_headers(self)

    @property
    def sources(self) -> Sources:
        found: Sources = self.settings[SOURCES]
        return found

    @property
    def who(self) -> str:
        """The name of whoever logged in, or of the password that was given; "" where Flower asks nobody."""
        if isinstance(self.current_user, str):
            return self.current_user
        if not self.application.options.basic_auth:
            return ""
        # Flower has compared it.
        credentials = b64decode(self.request.headers["Authorization"].split()[1]).decode()
        return credentials.partition(":")[0]

    @property
    def why_no_action(self) -> str:
        """ "" where jobs may be acted on: under the conditions under which Flower's own API acts."""
        options = self.application.options
        if options.read_only:
            return "Flower runs read-only"
        if not (options.basic_auth or options.auth or self.unauthenticated_api):
            return "Flower asks nobody who they are: set --basic-auth or --auth to act on jobs from here"
        return ""


class Page(Handler):
    """A page that its script fills with what its data handler says."""

    template: ClassVar[str]

    @authenticated
    def get(self, *arguments: str) -> None:
        self.render(
            self.template,
            asset=self.asset,
            zone=self.sources.settings.costs.time_zone,
            why_no_action=self.why_no_action,
            **self.facts(*arguments),
        )

    def facts(self, *arguments: str) -> dict[str, Any]:
        """What the template is told besides."""
        return {}

    def asset(self, name: str) -> str:
        """Where a file of ours is, under a name that changes with it."""
        version = StaticFileHandler.get_version({"static_path": str(STATIC)}, name)
        return f"{self.reverse_url('celeriac_static', name)}?v={version}"


class Data(Handler):
    """Answers with JSON, and with 304 to those who have it."""

    def prepare(self) -> None:
        if not self.current_user:
            raise HTTPError(403, "Log in again")

    async def answer(self, *arguments: str) -> Any:
        """What is to be said. Raises one of STATUS."""
        raise NotImplementedError

    async def get(self, *arguments: str) -> None:
        await self.say(*arguments)

    async def say(self, *arguments: str) -> None:
        self.set_header("Content-Type", "application/json")
        try:
            async with answering(within=PATIENCE):
                said = await self.answer(*arguments)
        except tuple(STATUS) as error:
            self.set_status(next(status for kind, status in STATUS.items() if isinstance(error, kind)))
            said = {"error": str(error), "remedy": getattr(error, "remedy", "")}
        self.finish(orjson.dumps(said))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Never a traceback: the log has it."""
        if not hasattr(self, "_current_user"):
            self.current_user = None
        error = kwargs.get("exc_info", (None, None))[1]
        said = error.log_message if isinstance(error, HTTPError) and error.log_message else self._reason
        if status_code == 401 and self.application.options.basic_auth:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.set_header("Content-Type", "application/json")
        self.finish(orjson.dumps({"error": said, "remedy": ""}))

    def chosen(self, name: str, known: Any, default: str) -> str:
        """An argument that is one of those. Raises Invalid."""
        value: str = self.get_argument(name, default, escape=False)
        if value not in known:
            raise Invalid(f"{name} is {value!r}", field=name, remedy=f"use {', '.join(known)}")
        return value


class Act(Data):
    """Changes something. Only for a page of ours: no other site can make a browser do it, whoever is logged in."""

    def check_xsrf_cookie(self) -> None:
        site, origin = self.request.headers.get("Sec-Fetch-Site"), self.request.headers.get("Origin")
        # Of these a browser sends at least one with each POST; what sends neither is no browser.
        if site not in (None, "same-origin") or (
            site is None and origin is not None and urlsplit(origin).netloc != self.request.host
        ):
            raise HTTPError(403, "This comes from another site")
        super().check_xsrf_cookie()

    def prepare(self) -> None:
        super().prepare()
        if why := self.why_no_action:
            raise HTTPError(403, why)

    async def get(self, *arguments: str) -> None:
        raise HTTPError(405)

    async def post(self, *arguments: str) -> None:
        # A form of another site can send anything else.
        if self.request.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise HTTPError(415, "Send JSON")
        await self.say(*arguments)
