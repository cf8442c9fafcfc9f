"""How people use a site of django CMS."""

from __future__ import annotations

from applications.visit import Person, Visit

ADMIN, EDITOR, PASSWORD = "ada", "grace", "a long enough password"

PAGES = "/en/admin/cms/pagecontent/"
TREE = f"{PAGES}get-tree/?language=en&site=1"
VERSIONS = "/en/admin/djangocms_versioning/pagecontentversion/"
ALIASES = "/en/admin/djangocms_alias/alias/"
FORM = "form[method=post i]:not(#logout-form)"
PUBLIC = ["/en/", "/en/tea/", "/en/tea/green/", "/en/green/", "/en/prices/list/"]
READERS, READERS_PACE = 30, 0.1
"""Thirty readers at once, each of whom opens a page in three seconds."""
PASSES = 8

PAGE, ALIAS = 3, 48
"""The numbers of their content types."""


def walk(visit: Visit) -> None:
    """Sign in, add an editor, and have the editor write, publish, move and delete pages, which others read."""
    admin, editor = visit.person(ADMIN), visit.person(EDITOR)
    _sign_in(admin, ADMIN)
    _add_editor(admin)
    visit.catch_up()
    _sign_in(editor, EDITOR)
    _write_home(editor)
    _write_pages(editor)
    _read(visit)
    _publish_again(editor, visit)
    _read(visit)
    _use_alias(editor)
    _read(visit)
    _move(editor, visit)
    _take_back(editor)
    _read(visit)
    _hook(editor, visit)
    _read(visit)
    _look_around(admin)
    admin.open("/en/admin/auth/user/2/history/")


def edited(number: int, mode: str, kind: int = PAGE) -> str:
    """Return where the content of a page, or of something else, is shown to its editor.

    Args:
        number: of the content.
        mode: ``edit``, ``preview`` or ``structure``.
        kind: number of its content type.
    """
    return f"/en/admin/cms/placeholder/object/{kind}/{mode}/{number}/"


def _sign_in(person: Person, name: str) -> None:
    person.open("/en/admin/")
    person.submit({"username": name, "password": PASSWORD})
    _browse(person, "/en/admin/", PAGES, ALIASES, "/en/admin/filer/folder/")


def _browse(person: Person, *paths: str) -> None:
    for path in paths:
        person.open(path)


def _read_on(editor: Person) -> None:
    """Look at what an editor looks at between two changes."""
    _browse(editor, TREE, "/en/", PAGES, "/en/admin/", f"{ALIASES}?q=hours", edited(1, "preview"))
    _browse(editor, f"{VERSIONS}?page=1&language=en", f"{PAGES}1/history/")


def _add_editor(admin: Person) -> None:
    admin.open("/en/admin/auth/group/add/")
    options = admin.page.select("#id_permissions option")
    permissions = [one["value"] for one in options if not one.text.startswith("Auth")]
    admin.submit({"name": "Editors", "permissions": permissions}, form="#group_form")
    _browse(admin, "/en/admin/auth/group/", "/en/admin/auth/group/1/change/")
    admin.open("/en/admin/auth/user/add/")
    admin.submit(
        {"username": EDITOR, "password1": PASSWORD, "password2": PASSWORD}, form="#user_form"
    )
    admin.submit({"is_staff": True, "groups": "1", "first_name": "Grace"}, form="#user_form")
    users = "/en/admin/auth/user/"
    _browse(admin, users, f"{users}?q=grace", f"{users}2/change/", f"{users}2/history/")


def _write_home(editor: Person) -> None:
    _add_page(editor, "Home", "home")
    _add_text(editor, 1, "<p>Welcome to all who drink tea.</p>")
    _publish(editor, 1)


def _add_page(editor: Person, title: str, slug: str, parent: str = "") -> None:
    editor.open(f"{PAGES}add/?language=en&parent_page={parent}")
    editor.submit({"title": title, "slug": slug}, form="#pagecontent_form")
    _read_on(editor)


def _add_text(editor: Person, content: int, text: str, kind: int = PAGE) -> None:
    editor.open(_new_plugin(editor, "TextPlugin", content, kind))
    editor.submit({"body": text}, form=FORM)
    _look_at(editor, content, kind)


def _new_plugin(editor: Person, plugin: str, content: int, kind: int = PAGE) -> str:
    """Open the structure board, and return where a plugin is added to its first placeholder."""
    editor.open(edited(content, "structure", kind))
    placeholder = editor.address(r"/clear-placeholder/\d+/").rstrip("/").rpartition("/")[2]
    return (
        f"/en/admin/cms/placeholder/add-plugin/?placeholder_id={placeholder}&plugin_type={plugin}"
        f"&cms_path={edited(content, 'edit', kind)}&plugin_language=en&plugin_position=1"
    )


def _look_at(editor: Person, content: int, kind: int = PAGE) -> None:
    _browse(editor, *(edited(content, mode, kind) for mode in ["structure", "edit", "preview"]))
    _read_on(editor)


def _publish(editor: Person, content: int, kind: int = PAGE) -> None:
    editor.open(edited(content, "edit", kind))
    editor.post(editor.address(r"/publish/"), {})
    _read_on(editor)


def _write_pages(editor: Person) -> None:
    _add_page(editor, "Tea", "tea")
    editor.open("/en/admin/cms/page/2/advanced-settings/?language=en")
    editor.submit({"reverse_id": "tea"}, form="#page_form")
    editor.open("/en/admin/cms/page/2/advanced-settings/?language=en")
    _read_on(editor)
    _publish(editor, 2)
    _browse(editor, "/en/tea/", f"{VERSIONS}?page=2&language=en")
    _add_page(editor, "Green tea", "green", parent="2")
    _add_text(editor, 3, "<p>Green tea is green.</p>")
    _publish(editor, 3)
    _browse(editor, "/en/tea/green/", "/en/tea/", f"{VERSIONS}?page=3&language=en")
    _browse(editor, f"{PAGES}3/change/?language=en", "/en/")


def _publish_again(editor: Person, visit: Visit) -> None:
    editor.open("/en/tea/green/")
    editor.open(edited(3, "preview"))
    editor.post(editor.address(r"/edit-redirect/"), {})
    _browse(editor, edited(4, "edit"), edited(4, "structure"), "/en/tea/green/")
    _read_on(editor)
    editor.open(f"{PAGES}4/change/?language=en")
    editor.submit({"title": "Very green tea"}, form="#pagecontent_form")
    _browse(editor, edited(4, "preview"), "/en/tea/green/", f"{VERSIONS}?page=3&language=en")
    _read_on(editor)
    _change_text(editor, 4, "<p>Very green tea is very green.</p>")
    editor.open(edited(4, "edit"))
    editor.post(editor.address(r"/publish/"), {})
    _pass_by(visit, *PUBLIC)
    _browse(editor, "/en/tea/green/", "/en/tea/", f"{VERSIONS}?page=3&language=en")
    _read_on(editor)
    editor.open(f"{VERSIONS}5/compare/?compare_to=4")
    _browse(editor, f"{PAGES}4/history/", "/en/admin/cms/page/3/history/", "/en/admin/")


def _change_text(editor: Person, content: int, text: str) -> None:
    editor.open(edited(content, "structure"))
    # The board has the address in a script.
    number = str(editor.page).partition("edit-plugin/")[2].partition("/")[0]
    editor.open(f"/en/admin/cms/placeholder/edit-plugin/{number}/")
    editor.submit({"body": text}, form=FORM)
    _look_at(editor, content)


def _use_alias(editor: Person) -> None:
    """Write a text for the footer of all pages, and one that a page shows."""
    _browse(editor, ALIASES, f"{ALIASES}add/?language=en")
    name = {"content__name": "Opening hours", "content__language": "en", "category": "1"}
    editor.post(f"{ALIASES}add/?language=en", name)
    _browse(editor, ALIASES, "/en/admin/djangocms_alias/category/")
    _read_on(editor)
    for content, text in [(1, "<p>All rights reserved.</p>"), (2, "<p>Open from nine.</p>")]:
        _add_text(editor, content, text, ALIAS)
        _publish(editor, content, ALIAS)
        _browse(editor, ALIASES, "/en/tea/")
    editor.open(edited(2, "preview"))
    editor.post(editor.address(r"/edit-redirect/"), {})
    editor.open(edited(5, "preview"))
    _read_on(editor)
    address = _new_plugin(editor, "Alias", 5)
    editor.open(address)
    editor.post(address, {"site": "1", "category": "1", "alias": "2", "template": "default"})
    _look_at(editor, 5)
    _publish(editor, 5)
    _browse(editor, "/en/tea/", f"{VERSIONS}?page=2&language=en", "/en/")
    editor.open("/en/admin/cms/page/plugin/alias/aliases/2/usage/")


def _move(editor: Person, visit: Visit) -> None:
    """Move a page out of another, that into this, and out of it again, while others look on."""
    for page, target in [(3, ""), (2, "3"), (2, "")]:
        _browse(editor, TREE, f"/en/admin/cms/page/{page}/actions-menu/")
        where = {"position": "0", "target": target, "site": "1"}
        editor.post(f"/en/admin/cms/page/{page}/move-page/", where)
        _pass_by(visit, *PUBLIC)
        _browse(editor, "/en/green/", "/en/tea/green/", "/en/tea/", "/en/green/tea/")
        _read_on(editor)
        _browse(editor, f"{PAGES}4/history/", f"/en/admin/cms/page/{page}/history/")


def _take_back(editor: Person) -> None:
    """Archive a draft, unpublish a page, and delete another."""
    versions = f"{VERSIONS}?page=3&language=en"
    editor.open(edited(4, "preview"))
    editor.post(editor.address(r"/edit-redirect/"), {})
    editor.open(edited(6, "preview"))
    _read_on(editor)
    editor.open(versions)
    editor.follow(r"/archive/")
    editor.submit({}, form=FORM)
    _browse(editor, versions, "/en/green/", edited(6, "preview"))
    _read_on(editor)
    editor.open(versions)
    editor.follow(r"/unpublish/")
    editor.submit({}, form=FORM)
    _browse(editor, "/en/green/", versions, "/en/green/tea/")
    _read_on(editor)
    _add_page(editor, "Black tea", "black")
    editor.open("/en/admin/cms/page/4/delete/")
    editor.submit({}, form=FORM)
    _browse(editor, "/en/black/", edited(7, "preview"))
    _read_on(editor)


def _hook(editor: Person, visit: Visit) -> None:
    """Have an application of the site answer below a page: each worker has to load its addresses anew."""
    _add_page(editor, "Prices", "prices")
    _publish(editor, 8)
    editor.open("/en/admin/cms/page/5/advanced-settings/?language=en")
    hook = {"application_urls": "Prices", "application_namespace": "prices"}
    editor.submit(hook, form="#page_form")
    _pass_by(visit, *(["/en/prices/list/"] * PASSES))
    _browse(editor, *(["/en/prices/list/"] * PASSES))
    _read_on(editor)
    _browse(editor, *(["/en/prices/list/"] * PASSES))


def _pass_by(visit: Visit, *paths: str) -> None:
    """Have others open pages within the lag, and so fill what all share.

    What these are shown may be old: it is not kept.
    """
    others = Visit(visit.url, 0.0, visit.catch_up)
    _browse(others.person("passer-by"), *paths)


def _look_around(person: Person) -> None:
    _browse(person, "/en/admin/", PAGES, TREE, "/en/admin/filer/folder/", ALIASES)
    _browse(person, f"{VERSIONS}?page=2&language=en", f"{PAGES}5/change/?language=en")
    _browse(person, "/en/admin/cms/page/2/advanced-settings/?language=en", f"{PAGES}5/history/")
    _browse(person, edited(5, "preview"), "/en/", "/en/tea/", "/en/admin/cms/usersettings/")


def _read(visit: Visit) -> None:
    """Have others read, once replicas have what was written."""
    visit.catch_up()
    for number in range(READERS):
        _browse(
            visit.person(f"reader {number + 1}", pace=READERS_PACE), *PUBLIC, "/en/", "/en/tea/"
        )
