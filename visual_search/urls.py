from django.urls import path

from visual_search.storefront.views import results, search_page

app_name = "visual_search"
urlpatterns = [path("", search_page, name="search"), path("results/", results, name="results")]
