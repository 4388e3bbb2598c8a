"""One image, looked at closely, and the page that shows what was found."""

from eah_interp.report.inspect import inspect_image as inspect_image
from eah_interp.report.inspection import Inspection as Inspection
from eah_interp.report.page import write_report as write_report
