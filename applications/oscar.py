"""django-oscar: a shop as its documentation, "Building your own shop", sets it up."""

from __future__ import annotations

from applications.application import Application, Workplace
from applications.environments import run
from applications.oscar_walk import PASSWORD, STAFF, walk

SETTINGS = """

import os

from applications.served import added
from oscar.defaults import *

DEBUG = False
TEMPLATES[0]["OPTIONS"]["context_processors"] += [
    "oscar.apps.search.context_processors.search_form",
    "oscar.apps.checkout.context_processors.checkout",
    "oscar.apps.communication.notifications.context_processors.notifications",
    "oscar.core.context_processors.metadata",
]
INSTALLED_APPS = [
    *INSTALLED_APPS,
    "django.contrib.sites",
    "django.contrib.flatpages",
    "oscar.config.Shop",
    "oscar.apps.analytics.apps.AnalyticsConfig",
    "oscar.apps.checkout.apps.CheckoutConfig",
    "oscar.apps.address.apps.AddressConfig",
    "oscar.apps.shipping.apps.ShippingConfig",
    "oscar.apps.catalogue.apps.CatalogueConfig",
    "oscar.apps.catalogue.reviews.apps.CatalogueReviewsConfig",
    "oscar.apps.communication.apps.CommunicationConfig",
    "oscar.apps.partner.apps.PartnerConfig",
    "oscar.apps.basket.apps.BasketConfig",
    "oscar.apps.payment.apps.PaymentConfig",
    "oscar.apps.offer.apps.OfferConfig",
    "oscar.apps.order.apps.OrderConfig",
    "oscar.apps.customer.apps.CustomerConfig",
    "oscar.apps.search.apps.SearchConfig",
    "oscar.apps.voucher.apps.VoucherConfig",
    "oscar.apps.wishlists.apps.WishlistsConfig",
    "oscar.apps.dashboard.apps.DashboardConfig",
    "oscar.apps.dashboard.reports.apps.ReportsDashboardConfig",
    "oscar.apps.dashboard.users.apps.UsersDashboardConfig",
    "oscar.apps.dashboard.orders.apps.OrdersDashboardConfig",
    "oscar.apps.dashboard.catalogue.apps.CatalogueDashboardConfig",
    "oscar.apps.dashboard.offers.apps.OffersDashboardConfig",
    "oscar.apps.dashboard.partners.apps.PartnersDashboardConfig",
    "oscar.apps.dashboard.pages.apps.PagesDashboardConfig",
    "oscar.apps.dashboard.ranges.apps.RangesDashboardConfig",
    "oscar.apps.dashboard.reviews.apps.ReviewsDashboardConfig",
    "oscar.apps.dashboard.vouchers.apps.VouchersDashboardConfig",
    "oscar.apps.dashboard.communications.apps.CommunicationsDashboardConfig",
    "oscar.apps.dashboard.shipping.apps.ShippingDashboardConfig",
    "widget_tweaks",
    "haystack",
    "treebeard",
    "sorl.thumbnail",
    "django_tables2",
]
SITE_ID = 1
MIDDLEWARE = [
    *MIDDLEWARE,
    "oscar.apps.basket.middleware.BasketMiddleware",
    "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
]
AUTHENTICATION_BACKENDS = [
    "oscar.apps.customer.auth_backends.EmailBackend",
    "django.contrib.auth.backends.ModelBackend",
]
MEDIA_URL, MEDIA_ROOT = "/media/", BASE_DIR / "media"
STATIC_ROOT = BASE_DIR / "static"
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
OSCAR_INITIAL_ORDER_STATUS = OSCAR_INITIAL_LINE_STATUS = "Pending"
OSCAR_ORDER_STATUS_PIPELINE = {
    "Pending": ("Being processed", "Cancelled"),
    "Being processed": ("Processed", "Cancelled"),
    "Cancelled": (),
}
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
globals().update(added(INSTALLED_APPS, MIDDLEWARE))
# Oscar's documentation recommends it.
DATABASES["default"]["ATOMIC_REQUESTS"] = True
"""

URLS = """
from django.apps import apps
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("i18n/", include("django.conf.urls.i18n")),
    path("admin/", admin.site.urls),
    path("", include(apps.get_app_config("oscar").urls[0])),
]
"""


def create(place: Workplace) -> None:
    """Have Django make a project, and give it Oscar's settings and addresses."""
    django = [str(place.python), "-m", "django"]
    run([*django, "startproject", "frobshop", str(place.directory)])
    settings = place.directory / "frobshop" / "settings.py"
    place.write("frobshop/settings.py", settings.read_text() + SETTINGS)
    place.write("frobshop/urls.py", URLS)


def fill(place: Workplace) -> None:
    """Create countries and the first user, as the documentation says."""
    place.django("oscar_populate_countries", "--verbosity", "0")
    place.environ["DJANGO_SUPERUSER_PASSWORD"] = PASSWORD
    place.django("createsuperuser", "--noinput", "--username", "ada", "--email", STAFF)


OSCAR = Application(
    name="oscar",
    requirements=("django-oscar[sorl-thumbnail]==4.2.1", "pycountry==24.6.1"),
    settings="frobshop.settings",
    wsgi="frobshop.wsgi",
    create=create,
    fill=fill,
    walk=walk,
    page="/catalogue/",
    # docs/applications.md tells what each is for.
    recipe={
        "COOKIE": True,
        "IGNORED_WRITES": ["analytics"],
        "PRIMARY_ONLY": ["thumbnail"],
        "MONOTONIC_READS": False,
    },
)
