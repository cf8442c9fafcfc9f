"""The pages of both services of the documents' example."""

from __future__ import annotations

from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tests.examples import load_example

shop = load_example("http.md", "shop/views.py")
pages = load_example("http.md", "shop/pages.py")
index = load_example("http.md", "index/views.py")

urlpatterns = [
    path("", shop.show),
    path("names/", shop.names),
    path("add/<name>/", csrf_exempt(shop.add)),
    path("pages/refresh/", csrf_exempt(pages.refresh)),
    path("pages/found/", pages.found),
    path("refresh/", index.refresh),
    path("found/", index.found),
]
