from tests.gadgets.models import Gadget
from visual_search.catalog import Catalog, Keyword


class GadgetCatalog(Catalog):
    model = Gadget
    images = "picture"
    filters = {
        "maker": Keyword("line.maker.name"),
        "tag": Keyword("tags.name"),
        "colour": Keyword("variant_set.colour"),
    }

    def queryset(self):
        return Gadget.objects.select_related("line__maker").prefetch_related("tags", "variant_set")
