"""Causal ablation studies: items x conditions, resumable, with intervals."""

from eah_interp.studies.benchmark_items import amber_items as amber_items
from eah_interp.studies.benchmark_items import (
    hallusionbench_items as hallusionbench_items,
)
from eah_interp.studies.benchmark_items import list_answers as list_answers
from eah_interp.studies.benchmark_items import mme_items as mme_items
from eah_interp.studies.benchmark_items import mmvp_items as mmvp_items
from eah_interp.studies.claims import answer_claims as answer_claims
from eah_interp.studies.conditions import Condition as Condition
from eah_interp.studies.conditions import control_conditions as control_conditions
from eah_interp.studies.conditions import sweep as sweep
from eah_interp.studies.contrasts import adjust_family as adjust_family
from eah_interp.studies.items import Item as Item
from eah_interp.studies.items import caption_items as caption_items
from eah_interp.studies.items import pope_items as pope_items
from eah_interp.studies.items import toy_items as toy_items
from eah_interp.studies.ledger import examine_model as examine_model
from eah_interp.studies.ledger import examine_outputs as examine_outputs
from eah_interp.studies.ledger import examine_toy as examine_toy
from eah_interp.studies.ledger import find_claim as find_claim
from eah_interp.studies.ledger import list_claims as list_claims
from eah_interp.studies.manifest import ModelSource as ModelSource
from eah_interp.studies.nulls import NearTie as NearTie
from eah_interp.studies.nulls import RandomDraw as RandomDraw
from eah_interp.studies.own_data import table_items as table_items
from eah_interp.studies.report import report as report
from eah_interp.studies.scores import list_captions as list_captions
from eah_interp.studies.study import Study as Study
from eah_interp.studies.study import StudyRun as StudyRun
from eah_interp.studies.study_file import StudyFile as StudyFile
from eah_interp.studies.summing import compare_runs as compare_runs
from eah_interp.studies.summing import summarise as summarise
