"""What staff and customers of a shop with django-oscar do."""

from __future__ import annotations

from applications.visit import Person, Visit
from applications.wagtail import picture

STAFF, CUSTOMER, PASSWORD = "ada@example.com", "grace@example.com", "a long enough password"

SENCHA, BANCHA, KUKICHA = "/catalogue/sencha_1/", "/catalogue/bancha_2/", "/catalogue/kukicha_3/"
TEAS = "/catalogue/category/teas_1/"

SHOP = [
    "/catalogue/",
    TEAS,
    SENCHA,
    "/search/?q=cha",
    BANCHA,
    f"{BANCHA}reviews/",
    "/offers/",
    "/search/?q=sencha",
    SENCHA,
    TEAS,
]
"""Pages that people look at before they do something."""

ACCOUNT = [
    "/accounts/profile/",
    "/accounts/orders/",
    "/accounts/addresses/",
    "/accounts/emails/",
    "/accounts/notifications/inbox/",
]

DASHBOARD = [
    "/dashboard/catalogue/",
    "/dashboard/",
    "/dashboard/orders/",
    "/dashboard/catalogue/categories/",
    "/dashboard/partners/",
    "/dashboard/reports/",
    "/dashboard/users/",
    "/dashboard/reviews/",
    "/dashboard/offers/",
    "/dashboard/orders/statistics/",
]


def walk(visit: Visit) -> None:
    """Open a shop, buy in it, and look after it, while others look around."""
    staff, customer, reader = (visit.person(name) for name in [STAFF, CUSTOMER, "anybody"])
    _open_shop(staff)
    visit.catch_up()
    _browse(reader, SHOP)
    _fill_basket(reader)
    _tell_of_tea(reader)
    visit.catch_up()
    _come_in(customer)
    _browse(reader, [*SHOP, "/basket/"])
    _want(customer)
    _buy(customer)
    _tell(customer)
    visit.catch_up()
    _send(staff)
    visit.catch_up()
    _look_after(customer)
    _change_shop(staff)
    visit.catch_up()
    _look_after(customer)
    _browse(reader, [*SHOP, KUKICHA, "/basket/"])


def _browse(person: Person, paths: list[str]) -> None:
    for path in paths:
        person.open(path)


def _open_shop(staff: Person) -> None:
    staff.open("/dashboard/")
    staff.submit({"username": STAFF, "password": PASSWORD}, form="#dashboard_login_form")
    _browse(staff, DASHBOARD)
    staff.open("/dashboard/partners/create/")
    staff.submit({"name": "Tea garden"}, form="form.form-stacked")
    _browse(staff, DASHBOARD)
    staff.open("/dashboard/catalogue/product-type/create/")
    attribute = {"attributes-0-name": "Origin", "attributes-0-code": "origin"}
    staff.submit(
        {"name": "Tea", **attribute, "attributes-0-type": "text"},
        form="#create_update_product_class_form",
    )
    _browse(staff, DASHBOARD)
    staff.open("/dashboard/catalogue/categories/create/")
    staff.submit({"name": "Teas"}, form="#create_update_category_form", button="action=save")
    _browse(staff, ["/dashboard/catalogue/categories/", *DASHBOARD])
    for name, price in [("Sencha", "5.00"), ("Bancha", "3.50"), ("Kukicha", "4.00")]:
        _add_product(staff, name, price)


def _add_product(staff: Person, name: str, price: str) -> None:
    staff.open("/dashboard/catalogue/products/create/tea/")
    values = {
        "title": name,
        "upc": name.upper(),
        "description": f"{name}, a tea of Japan",
        "attr_origin": "Japan",
        "productcategory_set-0-category": "1",
        "images-0-original": picture(),
        "stockrecords-0-partner": "1",
        "stockrecords-0-partner_sku": name.lower(),
        "stockrecords-0-num_in_stock": "20",
        "stockrecords-0-price": price,
    }
    staff.submit(values, form="#create_update_product_form", button="action=save")
    _browse(staff, [f"/dashboard/catalogue/?title={name}", *DASHBOARD, "/catalogue/", TEAS])


def _fill_basket(reader: Person) -> None:
    """Put things into the basket of somebody who has not signed in."""
    reader.open(SENCHA)
    reader.submit({"quantity": "2"}, form="#add_to_basket_form")
    _browse(reader, ["/basket/", *SHOP])
    _change_basket(reader, {"form-0-quantity": "4"})
    _browse(reader, ["/basket/", *SHOP, KUKICHA])


def _tell_of_tea(reader: Person) -> None:
    """Write a review without having signed in."""
    reader.open(f"{BANCHA}reviews/add/")
    values = {"title": "Mild", "score": "5", "body": "Also in the evening."}
    named = {"name": "Alan", "email": "alan@example.com"}
    reader.submit({**values, **named}, form="#add_review_form")
    _browse(reader, [f"{BANCHA}reviews/", *SHOP])


def _change_basket(person: Person, values: dict[str, object]) -> None:
    person.open("/basket/")
    if person.page.select_one("#basket_formset"):
        person.submit(values, form="#basket_formset")
    else:
        # The basket has been lost: there is nothing to change. As many steps as elsewhere can be compared.
        person.open("/basket/")


def _come_in(customer: Person) -> None:
    """Sign up and out, fill a basket, and sign in again, which merges it into that of the account."""
    _browse(customer, SHOP)
    customer.open("/accounts/register/")
    passwords = {"password1": PASSWORD, "password2": PASSWORD}
    customer.submit({"email": CUSTOMER, **passwords}, form="#register_form")
    _browse(customer, [*ACCOUNT, *SHOP, SENCHA])
    customer.submit({"quantity": "1"}, form="#add_to_basket_form")
    _browse(customer, ["/basket/", *SHOP])
    customer.open("/accounts/logout/")
    _browse(customer, [*SHOP, "/basket/", BANCHA])
    customer.submit({"quantity": "2"}, form="#add_to_basket_form")
    _browse(customer, ["/basket/", *SHOP])
    customer.open("/accounts/login/")
    customer.submit(
        {"login-username": CUSTOMER, "login-password": PASSWORD},
        form="#login_form",
        button="login_submit",
    )
    _browse(customer, ["/basket/", *ACCOUNT, *SHOP])


def _want(customer: Person) -> None:
    """Change quantities, take something out, and keep a list of wishes."""
    _change_basket(customer, {"form-0-quantity": "3"})
    _browse(customer, SHOP)
    _change_basket(customer, {"form-1-DELETE": True})
    _browse(customer, [*SHOP, KUKICHA])
    customer.submit({}, form="#add_to_wishlist_form")
    _browse(customer, ["/accounts/wishlists/", *SHOP])
    customer.open("/accounts/wishlists/")
    customer.follow(r"^/accounts/wishlists/\w{6}/$")
    _browse(customer, [*SHOP, BANCHA])
    # The second product goes onto the list by a link, so by a GET that writes.
    customer.follow(r"^/accounts/wishlists/\w{6}/add/2/$")
    _browse(customer, ["/accounts/wishlists/", *SHOP])


def _buy(customer: Person) -> None:
    customer.open("/basket/")
    customer.open("/checkout/")
    name = {"first_name": "Grace", "last_name": "Hopper"}
    address = {"line1": "1 Tea Street", "line4": "London", "postcode": "N12 9RT", "country": "GB"}
    customer.submit({**name, **address}, form="#new_shipping_address")
    customer.open("/checkout/preview/")
    customer.submit({}, form="#place_order_form")
    _browse(customer, [*ACCOUNT, "/basket/"])
    customer.open("/accounts/orders/")
    customer.follow(r"^/accounts/orders/\d+/$")
    _browse(customer, SHOP)


def _tell(customer: Person) -> None:
    """Write a review, and change the profile."""
    customer.open(f"{SENCHA}reviews/add/")
    values = {"title": "Fresh", "score": "4", "body": "As if from the garden."}
    customer.submit(values, form="#add_review_form")
    _browse(customer, [SENCHA, f"{SENCHA}reviews/", *SHOP])
    customer.open("/accounts/profile/edit/")
    customer.submit({"first_name": "Grace", "last_name": "Hopper"}, form="#profile_form")
    _browse(customer, [*ACCOUNT, *SHOP])


def _send(staff: Person) -> None:
    """Look at the order, and say that it is under way."""
    _browse(staff, DASHBOARD)
    staff.open("/dashboard/orders/")
    staff.follow(r"^/dashboard/orders/\d+/$")
    staff.submit({"new_status": "Being processed"}, form="#order_status_form")
    _browse(staff, DASHBOARD)
    staff.open("/dashboard/orders/")
    staff.follow(r"^/dashboard/orders/\d+/$")


def _change_shop(staff: Person) -> None:
    """Raise a price, and take a product out of the shop."""
    staff.open("/dashboard/catalogue/products/1/")
    staff.submit(
        {"description": "The best", "stockrecords-0-price": "5.50"},
        form="#create_update_product_form",
        button="action=save",
    )
    _browse(staff, [*DASHBOARD, SENCHA, *SHOP])
    staff.open("/dashboard/catalogue/products/3/delete/")
    staff.submit({}, form="#delete_product_form")
    _browse(staff, [*DASHBOARD, KUKICHA, *SHOP])


def _look_after(customer: Person) -> None:
    """See how the order is, and what has become of the shop."""
    _browse(customer, ACCOUNT)
    customer.open("/accounts/orders/")
    customer.follow(r"^/accounts/orders/\d+/$")
    customer.open("/accounts/wishlists/")
    customer.follow(r"^/accounts/wishlists/\w{6}/$")
    _browse(customer, [*SHOP, "/basket/"])
