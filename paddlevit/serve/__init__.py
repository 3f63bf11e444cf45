"""A small web server for one model: a page to drop an image on, and the same by POST. Knows nothing of Paddle."""
