"""Tables and the HTML page of a study."""
