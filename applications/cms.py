"""django CMS: a project set up by hand, with versions, aliases, text and Bootstrap components."""

from __future__ import annotations

from applications.application import Application, Workplace
from applications.cms_walk import ADMIN, PASSWORD, walk
from applications.environments import run

SETTINGS = """
from applications.served import added

from .settings import *

DEBUG = False
INSTALLED_APPS = [
    *INSTALLED_APPS,
    "mysite.apps.SiteConfig",
    "django.contrib.sites",
    "cms",
    "menus",
    "treebeard",
    "sekizai",
    "filer",
    "easy_thumbnails",
    "djangocms_text",
    "djangocms_link",
    "djangocms_frontend",
    "djangocms_frontend.contrib.grid",
    "djangocms_frontend.contrib.image",
    "djangocms_frontend.contrib.link",
    "djangocms_versioning",
    "parler",
    "djangocms_alias",
]
SITE_ID = 1
CMS_CONFIRM_VERSION4 = True
X_FRAME_OPTIONS = "SAMEORIGIN"
LANGUAGES = [("en", "English")]
LANGUAGE_CODE = "en"
MIDDLEWARE = [
    "cms.middleware.utils.ApphookReloadMiddleware",
    *MIDDLEWARE,
    "django.middleware.locale.LocaleMiddleware",
    "cms.middleware.user.CurrentUserMiddleware",
    "cms.middleware.page.CurrentPageMiddleware",
    "cms.middleware.toolbar.ToolbarMiddleware",
    "cms.middleware.language.LanguageCookieMiddleware",
]
TEMPLATES[0]["DIRS"] = [BASE_DIR / "templates"]
TEMPLATES[0]["OPTIONS"]["context_processors"] += [
    "django.template.context_processors.i18n",
    "sekizai.context_processors.sekizai",
    "cms.context_processors.cms_settings",
]
CMS_TEMPLATES = [("home.html", "Home page template")]
THUMBNAIL_HIGH_RESOLUTION = True
THUMBNAIL_PROCESSORS = (
    "easy_thumbnails.processors.colorspace",
    "easy_thumbnails.processors.autocrop",
    "filer.thumbnail_processors.scale_and_crop_with_subject_location",
    "easy_thumbnails.processors.filters",
)
STATIC_ROOT = BASE_DIR / "static"
MEDIA_URL = "/media/"
MEDIA_ROOT = BASE_DIR / "media"
globals().update(added(INSTALLED_APPS, MIDDLEWARE))
"""

URLS = """
from django.conf.urls.i18n import i18n_patterns
from django.contrib import admin
from django.urls import include, path

urlpatterns = i18n_patterns(
    path("admin/", admin.site.urls),
    path("", include("cms.urls")),
)
"""

APPS = """
from django.apps import AppConfig, apps
from django.conf import settings

class SiteConfig(AppConfig):
    name = "mysite"

    def ready(self):
        has_replicas = apps.is_installed("django_replica_router")
        if has_replicas and hasattr(settings, "CMS_CACHE_DURATIONS"):  # The recipe.
            from cms import appresolver
            from django_replica_router import use_primary
            appresolver.get_app_patterns = use_primary(appresolver.get_app_patterns)
"""

CMS_APPS = """
from cms.app_base import CMSApp
from cms.apphook_pool import apphook_pool

@apphook_pool.register
class Prices(CMSApp):
    app_name = "prices"
    name = "Prices"

    def get_urls(self, page=None, language=None, **kwargs):
        return ["mysite.prices"]
"""

PRICES = """
from django.http import HttpResponse
from django.urls import path

app_name = "prices"
urlpatterns = [path("list/", lambda request: HttpResponse("<p>Green tea: 3</p>"))]
"""

BASE = """
{% load cms_tags djangocms_alias_tags menu_tags sekizai_tags %}
<!DOCTYPE html>
<html>
<head>
    <meta charset="utf-8">
    <title>{% page_attribute "page_title" %}</title>
    {% render_block "css" %}
</head>
<body>
    {% cms_toolbar %}
    <nav><ul>{% show_menu 0 100 100 100 %}</ul></nav>
    <main>{% block content %}{% endblock %}</main>
    <footer>
        {% static_alias "footer" %}
        {% page_url "tea" as tea_url %}{% if tea_url %}<a href="{{ tea_url }}">Our tea</a>{% endif %}
    </footer>
    {% render_block "js" %}
</body>
</html>
"""

TEMPLATE = """
{% extends "base.html" %}
{% load cms_tags %}
{% block content %}{% placeholder "content" %}{% endblock %}
"""


def create(place: Workplace) -> None:
    """Have Django make a project, and add to it what the documentation says."""
    place.directory.mkdir(exist_ok=True)
    django = str(place.python.with_name("django-admin"))
    run([django, "startproject", "mysite", str(place.directory)])
    place.write("mysite/local.py", SETTINGS)
    place.write("mysite/urls.py", URLS)
    place.write("mysite/apps.py", APPS)
    place.write("mysite/cms_apps.py", CMS_APPS)
    place.write("mysite/prices.py", PRICES)
    place.write("templates/base.html", BASE)
    place.write("templates/home.html", TEMPLATE)


def fill(place: Workplace) -> None:
    """Create the first user, as the documentation says."""
    place.environ["DJANGO_SUPERUSER_PASSWORD"] = PASSWORD
    place.django("createsuperuser", "--noinput", "--username", ADMIN, "--email", "ada@example.com")
    place.django("cms", "check")


CMS = Application(
    name="cms",
    requirements=(
        "django-cms==5.1.3",
        "djangocms-versioning==2.8.0",
        "djangocms-alias==3.2.0",
        "djangocms-text==1.0.2",
        "djangocms-frontend==2.5.3",
    ),
    settings="mysite.local",
    wsgi="mysite.wsgi",
    create=create,
    fill=fill,
    walk=walk,
    page="/en/admin/login/",
    recipe={"PRIMARY_ONLY": ["sessions", "cms.UrlconfRevision"], "IGNORED_WRITES": ["menus"]},
    recipe_of_its_own={"CMS_CACHE_DURATIONS": {"menus": 0, "content": 0, "permissions": 0}},
)
