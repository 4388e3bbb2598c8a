"""Causal ablation studies: items x conditions, resumable, with intervals."""

from eah_interp.studies.plan.conditions import BASELINE as BASELINE
from eah_interp.studies.plan.conditions import Condition as Condition
from eah_interp.studies.plan.conditions import control_conditions as control_conditions
from eah_interp.studies.plan.conditions import sweep as sweep
from eah_interp.studies.plan.items import Item as Item
from eah_interp.studies.plan.items import caption_items as caption_items
from eah_interp.studies.plan.items import pope_items as pope_items
from eah_interp.studies.plan.items import toy_items as toy_items
from eah_interp.studies.plan.source import ModelSource as ModelSource
from eah_interp.studies.plan.spec import StudyFile as StudyFile
from eah_interp.studies.reports.page import report as report
from eah_interp.studies.run.progress import measure_progress as measure_progress
from eah_interp.studies.statistics.claims import Claim as Claim
from eah_interp.studies.statistics.claims import answer_claims as answer_claims
from eah_interp.studies.statistics.contrasts import Contrast as Contrast
from eah_interp.studies.statistics.draws import Draws as Draws
from eah_interp.studies.statistics.scores import score_rows as score_rows
from eah_interp.studies.statistics.summary import StudySummary as StudySummary
from eah_interp.studies.statistics.summing import compare_runs as compare_runs
from eah_interp.studies.statistics.summing import summarise as summarise
from eah_interp.studies.study import Study as Study
from eah_interp.studies.study import StudyRun as StudyRun
