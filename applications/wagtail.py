"""Wagtail: a site as ``wagtail start`` makes it."""

from __future__ import annotations

import io
import struct
import zlib

from applications.application import Application, Workplace
from applications.environments import run
from applications.visit import Person, Visit

ADMIN, EDITOR, PASSWORD = "ada", "grace", "a long enough password"

LOOKED_AT = [
    "",
    "pages/",
    "pages/3/",
    "pages/search/?q=tea",
    "images/",
    "documents/",
    "reports/locked/",
    "reports/workflow/",
    "reports/aging-pages/",
    "reports/page-types-usage/",
    "account/",
    "pages/3/edit/",
    "pages/3/history/",
    "images/?q=green",
    "images/?ordering=title",
    "images/multiple/add/",
    "documents/multiple/add/",
    "reports/workflow_tasks/",
    "pages/3/usage/",
]

LOCAL_SETTINGS = """
from applications.served import added

from .base import INSTALLED_APPS, MIDDLEWARE

DEBUG = False
globals().update(added(INSTALLED_APPS, MIDDLEWARE))
"""


def create(place: Workplace) -> None:
    """Have Wagtail make a project, whose settings it lets a file ``local`` complete."""
    wagtail = str(place.python.with_name("wagtail"))
    run([wagtail, "start", "mysite", str(place.directory)])
    place.write("mysite/settings/local.py", LOCAL_SETTINGS)


def fill(place: Workplace) -> None:
    """Create the first user, as the documentation says."""
    place.environ["DJANGO_SUPERUSER_PASSWORD"] = PASSWORD
    place.django("createsuperuser", "--noinput", "--username", ADMIN, "--email", "ada@example.com")


def picture() -> io.BytesIO:
    """Return a file with a picture: one green pixel as PNG."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0\0\xff\0")
    file = io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )
    file.name = "green.png"
    return file


def prices() -> io.BytesIO:
    """Return a file with a table."""
    file = io.BytesIO(b"tea,price\ngreen,3\n")
    file.name = "prices.csv"
    return file


def walk(visit: Visit) -> None:
    """Sign in, add an editor, and have the editor write, publish, move and delete pages, which others read."""
    admin, editor, reader = (visit.person(name) for name in [ADMIN, EDITOR, "anybody"])
    _sign_in(admin, ADMIN)
    _add_editor(admin)
    _sign_in(editor, EDITOR)
    for change in CHANGES:
        change(editor)
        _look_around(editor)
        visit.catch_up()
        _look_around(admin)
        _read(reader)
    admin.open("/admin/reports/site-history/")


def _sign_in(person: Person, name: str) -> None:
    person.open("/admin/")
    person.submit({"username": name, "password": PASSWORD})
    person.open("/admin/account/")
    person.open("/admin/pages/")


def _add_editor(admin: Person) -> None:
    admin.open("/admin/users/")
    admin.follow(r"^/admin/users/(add|new)")
    values = {"username": EDITOR, "email": "grace@example.com", "first_name": "Grace"}
    passwords = {"password1": PASSWORD, "password2": PASSWORD}
    moderators = {"groups": "1"}
    admin.submit(
        {**values, "last_name": "Hopper", **passwords, **moderators}, form="form[method=POST]"
    )
    admin.open("/admin/users/?q=grace")
    admin.follow(r"^/admin/users/edit/2/")
    admin.open("/admin/groups/")


def _write(editor: Person) -> None:
    editor.open("/admin/pages/3/")
    editor.open("/admin/pages/add/home/homepage/3/")
    editor.submit({"title": "Green tea", "slug": "green-tea"}, form="#page-edit-form")
    editor.open("/admin/pages/3/")


def _publish(editor: Person) -> None:
    editor.open("/admin/pages/4/edit/")
    editor.submit(
        {"title": "Very green tea", "seo_title": "All about green tea"},
        form="#page-edit-form",
        button="action-publish",
    )
    editor.open("/green-tea/")
    editor.open("/admin/pages/4/history/")


def _change(editor: Person) -> None:
    editor.open("/admin/pages/4/edit/")
    editor.submit({"title": "Tea, green"}, form="#page-edit-form")
    editor.open("/admin/pages/3/")
    editor.open("/green-tea/")
    editor.open("/admin/pages/4/revisions/compare/earliest...latest/")


def _keep_picture(editor: Person) -> None:
    editor.open("/admin/images/add/")
    editor.submit(
        {"title": "Green", "file": picture(), "tags": "tea, green"}, form="#w-editor-form"
    )
    editor.open("/admin/images/?q=green")
    editor.open("/admin/images/1/")


def _keep_document(editor: Person) -> None:
    editor.open("/admin/documents/add/")
    editor.submit({"title": "Prices", "file": prices()}, form="form[method=POST]")
    editor.open("/admin/documents/")
    editor.open("/admin/documents/edit/1/")


def _copy(editor: Person) -> None:
    editor.open("/admin/pages/4/copy/")
    editor.submit(
        {"new_title": "Black tea", "new_slug": "black-tea", "publish_copies": "on"},
        form="form[method=POST]",
    )
    editor.open("/black-tea/")
    editor.open("/admin/pages/3/")


def _move(editor: Person) -> None:
    editor.open("/admin/pages/5/move/4/confirm/")
    editor.submit({}, form="form[method=POST]")
    editor.open("/green-tea/black-tea/")
    editor.open("/admin/pages/4/")


def _unpublish(editor: Person) -> None:
    editor.open("/admin/pages/4/unpublish/")
    editor.submit({}, form="form[method=POST]")
    editor.open("/admin/pages/3/")
    editor.open("/green-tea/")


def _delete(editor: Person) -> None:
    editor.open("/admin/pages/5/delete/")
    editor.submit({}, form="form[method=POST]")
    editor.open("/admin/pages/4/")
    editor.open("/green-tea/black-tea/")


CHANGES = [
    _write,
    _publish,
    _change,
    _keep_picture,
    _keep_document,
    _copy,
    _move,
    _unpublish,
    _delete,
]
"""What the editor does, one after the other: page 3 is the home page, and what they make has the next numbers."""


def _look_around(person: Person) -> None:
    """Read on for a while, as people do between two changes."""
    for path in LOOKED_AT:
        person.open(f"/admin/{path}")


def _read(reader: Person) -> None:
    for path in ["/", "/green-tea/", "/green-tea/black-tea/", "/search/?query=tea"]:
        reader.open(path)


WAGTAIL = Application(
    name="wagtail",
    requirements=("wagtail==8.0.1",),
    settings="mysite.settings.dev",
    wsgi="mysite.wsgi",
    create=create,
    fill=fill,
    walk=walk,
    page="/",
    recipe={"IGNORED_WRITES": ["wagtailadmin.editingsession"]},
)
