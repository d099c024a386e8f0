# Pools → manifests of Kubernetes. No provider: kubectl applies the output, so that terraform destroy never needs the
# Kubernetes API.

terraform {
  required_version = ">= 1.9"
}

variable "pools" {
  type = map(object({
    instance_types = list(string)
    max_gpus       = number
    max_cpus       = number
    spot           = bool
    taints         = list(object({ key = string, value = string, effect = string }))
    disk_gb        = number
  }))
  description = "As the variable of the same name of the module above."
}

variable "node_role" {
  type        = string
  description = "Name of the IAM role of nodes."
}

variable "subnet_ids" {
  type        = list(string)
  description = "Private subnets of the nodes."
}

variable "security_group_id" {
  type        = string
  description = "Security group of the nodes."
}

variable "namespace" {
  type        = string
  description = "Namespace of the chart's release."
}

variable "models_bucket" {
  type        = string
  description = "Bucket of models, which the claim sie-models of the namespace mounts."
}

variable "region" {
  type        = string
  description = "Region of the bucket."
}

variable "shared_volume_id" {
  type        = string
  description = "Id of the EFS file system, or null."
  default     = null
}

variable "tags" {
  type        = map(string)
  description = "Tags of the instances and their disks."
  default     = {}
}

locals {
  # Network policies are enforced only while this switch exists.
  network_policies = [{
    apiVersion = "v1"
    kind       = "ConfigMap"
    metadata   = { name = "amazon-vpc-cni", namespace = "kube-system" }
    data       = { "enable-network-policy-controller" = "true" }
  }]

  node_classes = [for size in distinct([for pool in var.pools : pool.disk_gb]) : {
    apiVersion = "eks.amazonaws.com/v1"
    kind       = "NodeClass"
    metadata   = { name = "sie-${size}gb" }
    spec = {
      role                       = var.node_role
      subnetSelectorTerms        = [for id in var.subnet_ids : { id = id }]
      securityGroupSelectorTerms = [{ id = var.security_group_id }]
      networkPolicy              = "DefaultAllow"
      ephemeralStorage           = { size = "${size}Gi" }
      tags                       = var.tags
    }
  }]

  gpu_taint = [{ key = "nvidia.com/gpu", value = "", effect = "NoSchedule" }]

  node_pools = [for name, pool in var.pools : {
    apiVersion = "karpenter.sh/v1"
    kind       = "NodePool"
    metadata   = { name = name }
    spec = {
      template = {
        metadata = { labels = { "sie-pool" = name } }
        spec = {
          nodeClassRef = { group = "eks.amazonaws.com", kind = "NodeClass", name = "sie-${pool.disk_gb}gb" }
          requirements = [
            { key = "node.kubernetes.io/instance-type", operator = "In", values = pool.instance_types },
            { key = "karpenter.sh/capacity-type", operator = "In", values = [pool.spot ? "spot" : "on-demand"] },
            { key = "kubernetes.io/arch", operator = "In", values = ["amd64"] },
          ]
          taints = [for taint in concat(pool.max_gpus > 0 ? local.gpu_taint : [], pool.taints) : {
            for key, value in taint : key => value if value != ""
          }]
          expireAfter            = "336h" # nodes are replaced every two weeks, for updates of their system
          terminationGracePeriod = "1h"   # more than the longest drain of a pod
        }
      }
      limits = pool.max_gpus > 0 ? { "nvidia.com/gpu" = tostring(pool.max_gpus) } : { cpu = tostring(pool.max_cpus) }
      disruption = {
        consolidationPolicy = "WhenEmptyOrUnderutilized"
        consolidateAfter    = "5m" # a node without pods is paid for five more minutes
        budgets             = [{ nodes = "1" }]
      }
    }
  }]

  # The driver of S3 mounts existing buckets only, through a volume that is made for one claim.
  models = [
    { apiVersion = "v1", kind = "Namespace", metadata = { name = var.namespace } },
    {
      apiVersion = "v1"
      kind       = "PersistentVolume"
      metadata   = { name = "${var.namespace}-models" }
      spec = {
        capacity                      = { storage = "1Ti" } # required and without a meaning: a bucket has no size
        accessModes                   = ["ReadOnlyMany"]
        persistentVolumeReclaimPolicy = "Retain"
        storageClassName              = ""
        claimRef                      = { namespace = var.namespace, name = "sie-models" }
        mountOptions                  = ["region ${var.region}", "allow-other", "uid=10001", "gid=10001"]
        csi = {
          driver           = "s3.csi.aws.com"
          volumeHandle     = "${var.namespace}-models"
          volumeAttributes = { bucketName = var.models_bucket }
        }
      }
    },
    {
      apiVersion = "v1"
      kind       = "PersistentVolumeClaim"
      metadata   = { name = "sie-models", namespace = var.namespace }
      spec = {
        accessModes      = ["ReadOnlyMany"]
        storageClassName = ""
        volumeName       = "${var.namespace}-models"
        resources        = { requests = { storage = "1Ti" } }
      }
    },
  ]

  # The load balancers of the chart's ingress, which Auto Mode makes: in the private subnets only.
  ingress = [
    {
      apiVersion = "eks.amazonaws.com/v1"
      kind       = "IngressClassParams"
      metadata   = { name = "alb" }
      spec       = { scheme = "internal" }
    },
    {
      apiVersion = "networking.k8s.io/v1"
      kind       = "IngressClass"
      metadata   = { name = "alb" }
      spec = {
        controller = "eks.amazonaws.com/alb"
        parameters = { apiGroup = "eks.amazonaws.com", kind = "IngressClassParams", name = "alb" }
      }
    },
  ]

  storage_classes = var.shared_volume_id == null ? [] : [{
    apiVersion  = "storage.k8s.io/v1"
    kind        = "StorageClass"
    metadata    = { name = "sie-shared" }
    provisioner = "efs.csi.aws.com"
    parameters = {
      provisioningMode = "efs-ap"
      fileSystemId     = var.shared_volume_id
      directoryPerms   = "700"
      uid              = "10001"
      gid              = "10001"
    }
  }]
}

output "manifests" {
  description = "YAML documents for kubectl apply."
  value = join("---\n", concat(
    [for manifest in local.network_policies : yamlencode(manifest)],
    [for manifest in local.node_classes : yamlencode(manifest)],
    [for manifest in local.node_pools : yamlencode(manifest)],
    [for manifest in local.models : yamlencode(manifest)],
    [for manifest in local.ingress : yamlencode(manifest)],
    [for manifest in local.storage_classes : yamlencode(manifest)],
  ))
}
