"""The feed: from a query to a page, in one readable pipeline of small parts."""
