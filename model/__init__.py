"""Owns how a series becomes an artifact: read it, fit a network to it, compare the network, export it.

Knows nothing of the service: the artifact (one TorchScript file with its manifest) is all that they share.

Imports go down only:

    __main__                          the command line
    train                             a command: from a series to an artifact
    report                            what a person reads after training
    evaluate, export, inspect, memory the other commands
    backtest, early_stopping          forecasts along a series; the search for the best epoch and the refit
    memory_plots, memory_runs         how long cells remember: what is shown; learning and gradients
    fitting, provenance, options      one epoch of fitting; what a manifest says of a training; shared options
    artifact, checkpoint, plots       the two files; how plots look
    baselines, linear_forecasts       the simple forecasts
    gate_bias, memory_tasks           where gates begin; what only a long memory solves
    network                           scaling, calendar, cells and head: what the artifact runs
    cells, calendar_features          one time step of each recurrent cell; time of day and week
    datasets, manifest, files         a series; the artifact's JSON; how a file is written
    errors                            what a person at the command line can mend
"""
