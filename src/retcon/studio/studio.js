"use strict";
// The program of all pages. It asks the server, puts the server's own HTML into the page, and says
// how work is getting on. It builds no HTML of its own, and asks nobody else.
