"""Own crops: their features in a gallery (store.Gallery), to search and to group."""
