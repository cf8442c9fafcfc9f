"""URLs of the shop: those of the project, and what has others act."""

from __future__ import annotations

from django.urls import path

from testproject.services import shop
from testproject.urls import urlpatterns as project_urls

urlpatterns = [
    path("orders/<int:pk>/ship/", shop.ship, name="order-ship"),
    path("orders/<int:pk>/shipped/<str:task>/", shop.shipped, name="order-shipped"),
    path("orders/<int:pk>/deliver/<str:task>/", shop.deliver, name="order-deliver"),
    *project_urls,
]
