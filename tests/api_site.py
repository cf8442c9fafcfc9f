"""The APIs of the documents' examples, and what they are compared with."""

from __future__ import annotations

import strawberry
from django.http import HttpRequest
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.decorators import decorate_view
from ninja.security import HttpBearer
from rest_framework.decorators import api_view, authentication_classes
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework_simplejwt.authentication import JWTStatelessUserAuthentication
from strawberry.django.views import AsyncGraphQLView, GraphQLView
from strawberry.types import Info

from django_replica_router import use_replica
from django_replica_router.contrib.strawberry import QueriesFromReplicas
from testproject.notes.models import Note
from tests.examples import load_example
from tests.site import urlpatterns as site_urls

rest = load_example("http.md", "api/rest.py")
ninja = load_example("http.md", "api/ninja.py")
graphql = load_example("http.md", "api/graphql.py")


# A class of its own: use_replica changes the one that it decorates.
@api_view(["POST"])
@authentication_classes(rest.WAYS)
def undecorated(request: Request) -> Response:
    """Search without a word on replicas."""
    return Response([note.title for note in request.user.notes.all()])


@use_replica
@api_view(["POST"])
@authentication_classes([JWTStatelessUserAuthentication])
def stateless(request: Request) -> Response:
    """Search for a user of whom only the number is known, from the token."""
    return Response([note.title for note in Note.objects.filter(owner_id=request.user.pk)])


class Nobody(HttpBearer):
    """Lets everybody in, and does not tell who it is."""

    def authenticate(self, request: HttpRequest, token: str) -> str:
        """Return no user."""
        return "somebody"


@strawberry.type
class Query:
    """Searches in an event loop."""

    @strawberry.field
    async def search(self, info: Info) -> list[str]:
        """Return the titles of the user's notes."""
        user = await info.context.request.auser()
        return [note.title async for note in user.notes.all()]


Text, Found = ninja.Text, ninja.Found


async def asearch(request, wanted: Text):  # type: ignore[no-untyped-def, valid-type]
    """Search in an event loop."""
    return [note async for note in Note.objects.all()]


def lazily(request, wanted: Text):  # type: ignore[no-untyped-def, valid-type]
    """Return what is evaluated outside of the function."""
    return Note.objects.all()


def of_nobody(request):  # type: ignore[no-untyped-def]
    """Return all, for somebody of whom nothing is known."""
    return Note.objects.all()


for function in (asearch, lazily):
    function.__annotations__["wanted"] = Text
others = NinjaAPI(auth=ninja.Bearer(), urls_namespace="others")
others.post("/asearch/", response=list[Found])(decorate_view(use_replica)(asearch))
others.post("/lazily/", response=list[Found])(use_replica(lazily))
others.get("/nobody/", response=list[Found], auth=Nobody())(of_nobody)

aschema = strawberry.Schema(Query, extensions=[QueriesFromReplicas])

urlpatterns = [
    path("rest/search/", rest.search),
    path("rest/Search/", rest.Search.as_view()),
    path("rest/rename/", rest.rename),
    path("rest/undecorated/", undecorated),
    path("rest/stateless/", stateless),
    path("ninja/", ninja.api.urls),
    path("others/", others.urls),
    path("graphql/", csrf_exempt(GraphQLView.as_view(schema=graphql.schema))),
    path("agraphql/", csrf_exempt(AsyncGraphQLView.as_view(schema=aschema))),
    *site_urls,
]
