"""Other people's code as contestants, imported from checkouts that the user names; none of it is here."""
