"""The stores that come with asteps: one module each, imported when used."""
