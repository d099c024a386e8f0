locals {
  # Of each pool the smallest node, which every replica must fit.
  sizes = {
    for name, pool in var.pools : name => {
      vcpus      = min([for type in pool.instance_types : data.aws_ec2_instance_type.pools[type].default_vcpus]...)
      memory_mib = min([for type in pool.instance_types : data.aws_ec2_instance_type.pools[type].memory_size]...)
      gpus       = max([for type in pool.instance_types : sum(concat([0], [for gpu in data.aws_ec2_instance_type.pools[type].gpus : gpu.count]))]...)
    }
  }
}

module "values" {
  source = "../values"

  name             = var.release
  image_repository = aws_ecr_repository.server.repository_url
  models_volume    = { persistentVolumeClaim = { claimName = "sie-models", readOnly = true } }

  pools = {
    for name, pool in var.pools : name => merge(local.sizes[name], {
      min_replicas = pool.min_replicas
      max_replicas = pool.max_gpus > 0 ? pool.max_gpus : floor(pool.max_cpus / local.sizes[name].vcpus)
      taints       = pool.taints
    })
  }
}

output "cluster_name" {
  description = "Name of the cluster, for aws eks update-kubeconfig."
  value       = module.cluster.cluster_name
}

output "region" {
  description = "Region of the cluster."
  value       = data.aws_region.current.region
}

output "registry" {
  description = "Repository to which the image of the server is pushed."
  value       = aws_ecr_repository.server.repository_url
}

output "models_bucket" {
  description = "Bucket of models: one directory per model, as in models_dir."
  value       = aws_s3_bucket.models.id
}

output "manifests" {
  description = "Namespace, node pools and volumes, for kubectl apply."
  value       = module.nodes.manifests
}

output "values" {
  description = "Values of the chart deploy/helm/sie."
  value       = module.values.yaml
}
