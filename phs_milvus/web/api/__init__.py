"""The JSON behind the page, under /api/v1, which others may call too; /api describes it."""
