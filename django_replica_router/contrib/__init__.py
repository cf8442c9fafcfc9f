"""Other packages of the field: each module needs the one that it is named after."""
