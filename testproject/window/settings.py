"""Settings of the window: no database, no users, loopback only."""

from __future__ import annotations

import secrets

# A new one for each start: nothing that it signs outlives the process.
SECRET_KEY = secrets.token_urlsafe(48)
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "testproject.window.urls"
STATIC_URL = "static/"
USE_TZ = True
# The sites are on the same host, and cookies know no ports.
CSRF_COOKIE_NAME = "window_csrftoken"
CSRF_COOKIE_SAMESITE = "Strict"

INSTALLED_APPS = ["testproject.window", "django.contrib.staticfiles"]

MIDDLEWARE = [
    "testproject.window.middleware.content_security_policy",
    "django.middleware.security.SecurityMiddleware",
    # It refuses a host that is not ours.
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    },
]

# The terminal is for the address and for Ctrl-C; each request there would hide both.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"nowhere": {"class": "logging.NullHandler"}},
    "loggers": {
        "django.server": {"handlers": ["nowhere"], "propagate": False},
        "django.security.DisallowedHost": {"handlers": ["nowhere"], "propagate": False},
    },
}
