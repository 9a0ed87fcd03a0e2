"""A user's own crops: their features are kept in a gallery (store.Gallery), to be searched and grouped."""
