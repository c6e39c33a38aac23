"""The example shop's URLs, and a page with the widget elsewhere."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import path

from example_shop.urls import urlpatterns as shop_patterns

ELSEWHERE = """{% extends "example_shop/base.html" %}{% load visual_search %}
{% block content %}<h1>Elsewhere</h1>{% visual_search_widget %}{% endblock %}"""


def elsewhere(request: HttpRequest) -> HttpResponse:
    return HttpResponse(engines["django"].from_string(ELSEWHERE).render({}, request))


urlpatterns = [path("elsewhere/", elsewhere), *shop_patterns]
