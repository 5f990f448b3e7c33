"""One file per quantity: each measures it and returns frozen values with units; `report` gathers them."""
