#!/usr/bin/env bash
# django-oscar 4.2.1: the basket of a visitor without an account is named by a signed cookie. Where a page finds no row for
# it, Oscar deletes the cookie: one read from a copy of the database that is a moment behind, and the basket, which is in
# the database all the same, is lost for good. A site would expect an empty basket on that page, and the right one
# on the next.
# Here reads go to a second SQLite file, a copy from before the basket was made; then to the first file again.
# Seen with Python 3.13, Django 5.2.19:
#   after "add to basket": the cookie is there, rows in the basket: 1
#   a page read from the older copy: the cookie is deleted
#   the next page, read from the database itself: items in the basket: 0, rows in the database: 1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'django==5.2.19' 'django-oscar[sorl-thumbnail]==4.2.1' 'pycountry==24.6.1'

cat > "$folder/look.py" <<'PY'
import shutil
from pathlib import Path

import django
from django.conf import settings
from django.urls import include, path

HERE = Path(__file__).parent
APPS = """analytics.AnalyticsConfig checkout.CheckoutConfig address.AddressConfig shipping.ShippingConfig
catalogue.CatalogueConfig catalogue.reviews.CatalogueReviewsConfig communication.CommunicationConfig
partner.PartnerConfig basket.BasketConfig payment.PaymentConfig offer.OfferConfig order.OrderConfig
customer.CustomerConfig search.SearchConfig voucher.VoucherConfig wishlists.WishlistsConfig
dashboard.DashboardConfig dashboard.reports.ReportsDashboardConfig dashboard.users.UsersDashboardConfig
dashboard.orders.OrdersDashboardConfig dashboard.catalogue.CatalogueDashboardConfig
dashboard.offers.OffersDashboardConfig dashboard.partners.PartnersDashboardConfig
dashboard.pages.PagesDashboardConfig dashboard.ranges.RangesDashboardConfig
dashboard.reviews.ReviewsDashboardConfig dashboard.vouchers.VouchersDashboardConfig
dashboard.communications.CommunicationsDashboardConfig dashboard.shipping.ShippingDashboardConfig""".split()
CONTRIB = "admin auth contenttypes sessions messages staticfiles sites flatpages".split()


def config(name):
    app, _, kind = name.rpartition(".")
    return f"oscar.apps.{app}.apps.{kind}"


class Reads:
    """Reads go where the site says at the moment, as they do with replicas."""

    target = "default"

    def db_for_read(self, model, **hints):
        return self.target

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, other, **hints):
        return True


import oscar.defaults

oscars = {name: getattr(oscar.defaults, name) for name in dir(oscar.defaults) if name.isupper()}
settings.configure(
    **oscars,
    SECRET_KEY="for this look",
    ALLOWED_HOSTS=["testserver"],
    ROOT_URLCONF=__name__,
    SITE_ID=1,
    STATIC_URL="/static/",
    MEDIA_ROOT=str(HERE),
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    HAYSTACK_CONNECTIONS={"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}},
    DATABASES={
        alias: {"ENGINE": "django.db.backends.sqlite3", "NAME": HERE / f"{alias}.sqlite3"}
        for alias in ("default", "older")
    },
    DATABASE_ROUTERS=[f"{__name__}.Reads"],
    INSTALLED_APPS=[
        *(f"django.contrib.{name}" for name in CONTRIB),
        "oscar.config.Shop",
        *map(config, APPS),
        "widget_tweaks", "haystack", "treebeard", "sorl.thumbnail", "django_tables2",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "oscar.apps.basket.middleware.BasketMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                    "oscar.apps.search.context_processors.search_form",
                    "oscar.apps.checkout.context_processors.checkout",
                    "oscar.core.context_processors.metadata",
                ]
            },
        }
    ],
)
django.setup()

from django.apps import apps
from django.core.management import call_command
from django.db import connections
from django.test import Client
from django.test.utils import setup_test_environment

urlpatterns = [
    path("i18n/", include("django.conf.urls.i18n")),
    path("", include(apps.get_app_config("oscar").urls[0])),
]

setup_test_environment()  # so that a response tells what its template was given
call_command("migrate", verbosity=0)
from oscar.core.loading import get_model
from oscar.test.factories import create_product

product = create_product(price=3, num_in_stock=9)
connections.close_all()
shutil.copy(HERE / "default.sqlite3", HERE / "older.sqlite3")

Line = get_model("basket", "Line")
cookie = settings.OSCAR_BASKET_COOKIE_OPEN
visitor = Client()
answer = visitor.post(f"/basket/add/{product.pk}/", {"quantity": 1})
assert answer.status_code == 302, answer.status_code
seen = [f'after "add to basket": the cookie is {"there" if visitor.cookies[cookie].value else "missing"}, '
        f"rows in the basket: {Line.objects.using('default').count()}"]
Reads.target = "older"
answer = visitor.get("/basket/")
was_deleted = cookie in answer.cookies and not answer.cookies[cookie].value
seen.append(f"a page read from the older copy: the cookie is {'deleted' if was_deleted else 'kept'}")
Reads.target = "default"
answer = visitor.get("/basket/")
seen.append(f"the next page, read from the database itself: items in the basket: {answer.context['basket'].num_items}, "
            f"rows in the database: {Line.objects.using('default').count()}")
print("\n".join(seen))
PY
cd "$folder"
"$folder/venv/bin/python" -W ignore look.py | tee seen
diff seen - <<'SEEN'
after "add to basket": the cookie is there, rows in the basket: 1
a page read from the older copy: the cookie is deleted
the next page, read from the database itself: items in the basket: 0, rows in the database: 1
SEEN
