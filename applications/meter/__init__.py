"""An app that counts which server each query of a request runs on."""
