"""The configuration of the test cluster. Why the odd lines are there:

config_overrides        the nodes claim more cores than this machine has
EnforcePartLimits       an impossible request is refused, instead of pending for ever
preempt_send_user_signal  the job's own --signal arrives when it is preempted
proctrack, task, acct   no cgroups: they belong to the machine, not to the namespace
ReturnToService=2       a node that answers again is used again
SlurmdTimeout and what comes before it   a machine that stands still for seconds has neither lost a node nor a message
MinJobAge               a job's end is told to a test that asks late
"""

SLURM_CONF = """\
ClusterName=ci
SlurmctldHost={controller}({network}.254)
AuthType=auth/munge
SlurmUser=root
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={base}/log/jobcomp.txt
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
ReturnToService=2
SlurmctldTimeout=30
MessageTimeout=30
UnkillableStepTimeout=180
BatchStartTimeout=120
SlurmdTimeout=20
MinJobAge=3600
KillWait=5
JobRequeue=1
NodeName=n[1-{num_nodes}] NodeAddr={network}.[1-{num_nodes}] CPUs={num_cpus} RealMemory=4000 Gres=gpu:{num_gpus}
PartitionName=train Nodes=n[1-{num_nodes}] Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=preempt Nodes=n[1-{num_nodes}] MaxTime=INFINITE PriorityTier=1 GraceTime=120 PreemptMode=REQUEUE State=UP
"""

GRES_CONF = """\
NodeName=n[1-{num_nodes}] Name=gpu File={base}/dev/gpu[0-{last_gpu}]
"""
